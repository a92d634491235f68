"""Training a branch: alone, beside LoRA, with checkpointing, and where a trainer waits for every gradient."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.transformers_apt.models.references import visual
from tests.transformers_apt.training.conftest import let_learn, logits, without_parts
from transformers_apt import training


@pytest.fixture
def learner(model):
    """Only the branch learns."""
    model.requires_grad_(False).train()
    training.add_branch(model)
    return model


def whole_images(processor, prompt, half_plain, **settings):
    return processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=settings)


@pytest.mark.every_family
def test_the_branch_alone_learns_and_full_resolution_stays(learner, batch, processor, prompt, half_plain):
    whole = whole_images(processor, prompt, half_plain, patch_selection_method="off")
    before = logits(learner.eval(), whole), logits(learner, batch)
    others = {name: weight.clone() for name, weight in learner.named_parameters() if ".branch." not in name}
    weights = [weight for name, weight in learner.named_parameters() if ".branch." in name]
    assert weights == [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    losses = []
    for _ in range(3):
        loss = learner.train()(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    learner.eval()
    assert torch.equal(logits(learner, whole), before[0])
    assert not torch.equal(logits(learner, batch), before[1])
    assert all(torch.equal(learner.get_parameter(name), weight) for name, weight in others.items())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, learner, batch):
    branch = let_learn(learner.model.visual.branch)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            learner.gradient_checkpointing_enable({"use_reentrant": reentrant})
        loss = learner(**batch, labels=batch["input_ids"]).loss
        found.append([loss, *torch.autograd.grad(loss, list(branch.parameters()))] if not reentrant else None)
        if reentrant:  # which has no torch.autograd.grad
            branch.zero_grad()
            loss.backward()
            found[-1] = [loss, *(weight.grad.clone() for weight in branch.parameters())]
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize(
    "settings",
    [{"patch_selection_method": "off"}, {"patch_selection_method": "budget", "alpha": 1.0}],
    ids=["off", "every cell split"],
)
def test_a_batch_without_coarse_patches_does_not_stop_a_distributed_trainer(
    settings, learner, processor, prompt, half_plain, batch, tmp_path
):
    """It waits for a gradient of every weight that learns, and refuses the next batch where one was missing."""
    whole = whole_images(processor, prompt, half_plain, **settings)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(learner)
        for inputs in (whole, batch, whole):
            learner.zero_grad()
            parallel(**inputs, labels=inputs["input_ids"]).loss.backward()
            grads = [weight.grad for weight in learner.model.visual.branch.parameters()]
            assert any(bool(grad.any()) for grad in grads) == (inputs is batch)
    finally:
        distributed.destroy_process_group()
    frozen = visual(whole)
    expected = learner.eval().get_image_features(**frozen).pooler_output[0]
    assert torch.equal(learner.train().get_image_features(**frozen).pooler_output[0], expected)


def test_lora_beside_it(load_model, batch, tmp_path):
    """PEFT trains and saves the branch with its adapter where it is among `modules_to_save`."""
    model = load_model()
    let_learn(training.add_branch(model))
    expected = logits(model, batch)
    lora = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["branch"], init_lora_weights=False)
    wrapped = get_peft_model(model, lora)
    learning = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert sum(".branch." in name for name in learning) == 4
    assert not any(".branch." in name and "lora" in name for name in learning)
    wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer = torch.optim.SGD([weight for weight in wrapped.parameters() if weight.requires_grad], lr=0.1)
    optimizer.step()
    trained = logits(wrapped.eval(), batch)
    assert not torch.equal(trained, expected)
    wrapped.save_pretrained(tmp_path / "adapter")
    training.save(wrapped, tmp_path / "branch")
    again = load_model()
    training.add_branch(again)
    assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path / "adapter").eval(), batch), trained)
    alone = load_model()
    found = training.load(alone, tmp_path / "branch").state_dict()
    (learned,) = wrapped.get_base_model().model.visual.branch.modules_to_save.values()
    assert all(torch.equal(found[name], weight) for name, weight in learned.state_dict().items())


def test_lora_wrapped_first(load_model, batch, tmp_path):
    wrapped = get_peft_model(load_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    before = logits(wrapped, without_parts(batch))
    branch = training.add_branch(wrapped)
    assert all(weight.requires_grad for weight in branch.parameters())
    assert torch.equal(logits(wrapped, batch), before)
    training.save(wrapped, tmp_path)
    training.remove(wrapped)
    training.load(wrapped, tmp_path)


def learned(wrapped, adapter):
    return wrapped.get_base_model().model.visual.branch.modules_to_save[adapter].state_dict()


def test_of_two_adapters_the_active_ones_branch_is_saved(practised, load_model, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["branch"])
    wrapped = get_peft_model(practised, lora)
    wrapped.add_adapter("second", lora)
    let_learn(wrapped.get_base_model().model.visual.branch.modules_to_save["second"], seed=7)
    for adapter in ("default", "second"):
        wrapped.set_adapter(adapter)
        training.save(wrapped, tmp_path / adapter)
        found = training.load(load_model(), tmp_path / adapter).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in learned(wrapped, adapter).items()), adapter
    assert not torch.equal(learned(wrapped, "default")["zero.weight"], learned(wrapped, "second")["zero.weight"])


def test_on_a_tower_that_peft_trains_whole(load_model, batch, tmp_path):
    """It keeps a copy of the tower in the adapter, and that one computes."""
    wrapped = get_peft_model(load_model(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["visual"]))
    before = logits(wrapped, without_parts(batch))
    let_learn(training.add_branch(wrapped))
    practised = logits(wrapped, batch)
    assert not torch.equal(practised, before)
    training.save(wrapped, tmp_path)
    training.remove(wrapped)
    assert torch.equal(logits(wrapped, without_parts(batch)), before)
    training.load(wrapped, tmp_path)
    assert torch.equal(logits(wrapped, batch), practised)


def test_merged_into_the_model(practised, batch, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["branch"], init_lora_weights=False)
    wrapped = get_peft_model(practised, lora)
    let_learn(wrapped.get_base_model().model.visual.branch.modules_to_save["default"], seed=7)
    expected = logits(wrapped.eval(), batch)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path).eval(), batch), logits(merged, batch))
