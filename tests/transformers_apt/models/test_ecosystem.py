"""What people do to models and processors around this package: it keeps working with the patch on."""

import copy
import multiprocessing

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor
from transformers.feature_extraction_utils import BatchFeature

import transformers_apt

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def answer(model, inputs):
    return model.generate(**inputs, max_new_tokens=6, do_sample=False)


# Subclasses ----------------------------------------------------------------------------------------------------------


class MyImageProcessor(Qwen2VLImageProcessor):
    """Overrides a patched method and calls what it overrides."""

    def _preprocess(self, images, **kwargs):
        output = super()._preprocess(images, **kwargs)
        output["pixel_values"] = output["pixel_values"] * 2
        return output


class MyModel:
    """Overrides patched methods, with upstream's signatures, as code written before the patch does."""

    def get_image_features(self, pixel_values, image_grid_thw=None, **kwargs):
        self.asked = getattr(self, "asked", 0) + 1
        return super().get_image_features(pixel_values, image_grid_thw, **kwargs)


class MyGeneration:
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        image_grid_thw=None,
        mm_token_type_ids=None,
        **more,
    ):
        self.asked = getattr(self, "asked", 0) + 1
        named = {
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "mm_token_type_ids": mm_token_type_ids,
        }
        return super().forward(input_ids, attention_mask, **named, **more)


def test_a_subclass_of_an_image_processor(half_plain):
    mine, own = MyImageProcessor(**BUDGET), Qwen2VLImageProcessor(**BUDGET)
    found, expected = (p(images=half_plain, return_tensors="pt") for p in (mine, own))
    assert torch.equal(found["pixel_values"], expected["pixel_values"] * 2)
    assert torch.equal(found["image_patch_layout"], expected["image_patch_layout"])


@pytest.mark.every_family
def test_subclasses_of_models(inputs, load_model, processor, prompt, half_plain):
    # upstream maps a checkpoint's names by the class's own name, so subclasses are made afterwards
    mine = load_model()
    for module, overrides in ((mine, MyGeneration), (mine.model, MyModel)):
        module.__class__ = type(overrides.__name__, (overrides, type(module)), {})
    assert torch.equal(logits(mine, inputs), logits(load_model(), inputs))
    assert mine.asked == mine.model.asked == 1
    full = processor(images=half_plain, text=prompt(), return_tensors="pt", patch_selection_method="off")
    assert torch.equal(answer(mine, full), answer(load_model(), full))
    assert torch.equal(answer(mine, inputs), answer(load_model(), inputs)), "its **kwargs carry the layout"


class CountingProcessor(Qwen2VLProcessor):
    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        return "<|vision_start|>" + super().replace_image_token(image_inputs, image_idx, **kwargs)


def test_a_subclass_of_the_processor(processor, prompt, half_plain):
    own = CountingProcessor(processor.image_processor, processor.tokenizer, processor.video_processor)
    found = own(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=BUDGET)
    expected = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=BUDGET)
    assert found["input_ids"].shape[1] == expected["input_ids"].shape[1] + 1


# Copies and other processes ------------------------------------------------------------------------------------------


@pytest.mark.every_family
def test_deep_copies(model, inputs, processor, prompt, half_plain):
    assert torch.equal(logits(copy.deepcopy(model), inputs), logits(model, inputs))
    twin = copy.deepcopy(processor)
    twin.image_processor.alpha = 0.9
    again = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=BUDGET)
    assert (
        torch.equal(again["image_patch_layout"], inputs["image_patch_layout"]) and processor.image_processor.alpha == 1
    )


class Photos(Dataset):
    def __init__(self, processor, prompt, photos):
        self.processor, self.prompt, self.photos = processor, prompt, photos

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        return self.processor(images=self.photos[index], text=self.prompt, return_tensors="pt", images_kwargs=BUDGET)


def first(items):
    return items[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method, processor, prompt, photos, monkeypatch):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not available on this system")
    monkeypatch.delenv("TRANSFORMERS_APT", raising=False)
    dataset = Photos(processor, prompt(), photos[:2])
    loader = DataLoader(dataset, num_workers=1, collate_fn=first, multiprocessing_context=method)
    for found, expected in zip(loader, [dataset[0], dataset[1]], strict=True):
        assert isinstance(found, BatchFeature) and "image_patch_layout" in found
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_saved_batches(inputs, tmp_path):
    torch.save(dict(inputs), tmp_path / "batch.pt")
    found = torch.load(tmp_path / "batch.pt", weights_only=True)
    assert set(found) == set(inputs) and all(torch.equal(found[name], value) for name, value in inputs.items())
    torch.save(inputs, tmp_path / "feature.pt")
    with torch.serialization.safe_globals([BatchFeature]):
        again = torch.load(tmp_path / "feature.pt", weights_only=False)
    assert type(again) is type(inputs) and torch.equal(again["image_patch_layout"], inputs["image_patch_layout"])


# Models that others have changed -------------------------------------------------------------------------------------


@pytest.mark.every_family
def test_offloading_by_accelerate(load_model, inputs, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    expected, written = logits(load_model(), inputs), answer(load_model(), inputs)
    for place in ("cpu", "disk"):
        model = load_model()
        device_map = {"model.visual": place, "model.language_model": "cpu", "lm_head": place}
        model = accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
        assert hasattr(model.model.visual, "_hf_hook"), "nothing was dispatched"
        assert torch.equal(logits(model, inputs), expected)
        assert torch.equal(answer(model, inputs), written)


@pytest.mark.every_family
def test_loaded_with_a_device_map(load_model, inputs):
    pytest.importorskip("accelerate")
    assert torch.equal(logits(load_model(device_map={"": "cpu"}), inputs), logits(load_model(), inputs))


@pytest.mark.every_family
def test_lora_by_peft(load_model, inputs):
    peft = pytest.importorskip("peft")
    expected, written = logits(load_model(), inputs), answer(load_model(), inputs)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_model(), config)
    assert torch.equal(logits(model, inputs), expected), "a fresh adapter is zero"
    assert torch.equal(answer(model, inputs), written)
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    gradients = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any("visual" in name and "lora_B" in name for name in gradients), "the tower's adapters do not learn"
    assert all("lora_" in name for name in gradients)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    adapted = logits(model, inputs)
    assert not torch.equal(adapted, expected)
    torch.testing.assert_close(logits(model.merge_and_unload(), inputs), adapted, atol=1e-3, rtol=1e-3)


class EightBit(nn.Module):
    """A linear layer that keeps its weight as bytes and a scale per row, as quantising libraries do."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("scale", linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@pytest.mark.every_family
def test_linear_layers_replaced_by_8_bit_ones(load_model, inputs):
    """The tower's own dtype is read from a layer that may hold integers afterwards."""
    model, plain = load_model(), load_model()
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not model.lm_head:
                setattr(module, name, EightBit(child))
                count += 1
    for layer, twin in zip(  # the twin has the same rounded weights, as floats
        (m for m in model.modules() if isinstance(m, EightBit)),
        (m for m in plain.modules() if isinstance(m, nn.Linear) and m is not plain.lm_head),
        strict=True,
    ):
        twin.weight.data = layer.weight.float() * layer.scale
    assert count > 10
    assert torch.equal(logits(model, inputs), logits(plain, inputs))
    assert torch.equal(answer(model, inputs), answer(plain, inputs))


@pytest.mark.every_family
def test_a_compiled_decode_step(load_model, inputs):
    """With the eager backend: what is traced is what matters here, not the code generated from it."""
    expected = answer(load_model(), inputs)
    model = load_model()
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    model.forward = torch.compile(model.forward, backend=count)
    assert torch.equal(answer(model, inputs), expected)
    assert graphs, "nothing was compiled"
    seen = len(graphs)
    assert torch.equal(answer(model, inputs), expected)
    assert len(graphs) - seen <= seen, "it compiles anew for every prompt"
    torch._dynamo.reset()


@pytest.mark.every_family
def test_the_patch_can_be_switched_under_a_loaded_model(load_model, inputs, processor, prompt, half_plain):
    model = load_model()
    before = logits(model, inputs)
    transformers_apt.revert()
    try:
        stock = processor(images=half_plain, text=prompt(), return_tensors="pt")
        full = logits(model, stock)
    finally:
        transformers_apt.apply()
    assert torch.equal(logits(model, inputs), before) and torch.equal(logits(model, stock), full)
