"""Adding, saving, loading and removing a branch, beside a checkpoint and inside it."""

import json

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, BertConfig, BertModel

import transformers_apt
from tests.transformers_apt.training.conftest import let_learn, logits, without_parts
from transformers_apt import training
from transformers_apt.embedded.asking import load_checkpoint


def state_of(model):
    return {
        "modules": [name for name, _ in model.named_modules()],
        "attributes": sorted(vars(model.model.visual)),
        "config": model.config.to_json_string(),
        "tower": model.model.visual.config.to_json_string(),
    }


@pytest.mark.every_family(moe=True)
def test_saved_and_loaded(practised, load_model, batch, tmp_path):
    training.save(practised, tmp_path / "branch")
    assert {path.name for path in (tmp_path / "branch").iterdir()} == {
        "branch.safetensors", "branch_config.json", "README.md",
    }  # fmt: skip
    model = load_model()
    before, plain = state_of(model), logits(model, without_parts(batch))
    training.load(model, tmp_path)  # the folder that has it in `branch`
    assert torch.equal(logits(model, batch), logits(practised, batch))
    training.remove(model)
    assert state_of(model) == before
    assert torch.equal(logits(model, without_parts(batch)), plain)
    training.load(model, tmp_path / "branch")
    assert torch.equal(logits(model, batch), logits(practised, batch))


@pytest.mark.every_family
def test_inside_a_checkpoint(practised, batch, tmp_path, upstream, caplog):
    expected, plain = logits(practised, batch), None
    practised.save_pretrained(tmp_path)
    caplog.clear()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert "branch" not in caplog.text
    assert torch.equal(logits(loaded, batch), expected)
    training.remove(practised)
    plain = logits(practised, without_parts(batch))
    with upstream():  # a program without this package
        stock = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert not any(".branch." in name for name in stock.state_dict())
    assert torch.equal(logits(stock, without_parts(batch)), plain)


def test_the_weights_of_a_checkpoint_that_has_lost_them_start_at_zero(practised, batch, tmp_path):
    practised.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if ".branch." not in name},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert not any(bool(weight.any()) for weight in loaded.model.visual.branch.zero.parameters())
    assert bool(loaded.model.visual.branch.conv.weight.any())
    built = type(loaded)(loaded.config)
    assert not any(bool(weight.any()) for weight in built.model.visual.branch.zero.parameters())


def test_loaded_onto_devices_and_into_other_types(practised, batch, tmp_path):
    practised.save_pretrained(tmp_path)
    training.save(practised, tmp_path / "branch")
    mapped = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="cpu", dtype=torch.bfloat16)
    assert {weight.dtype for weight in mapped.model.visual.branch.parameters()} == {torch.bfloat16}
    training.remove(mapped)
    branch = training.load(mapped, tmp_path)
    assert {weight.dtype for weight in branch.parameters()} == {torch.bfloat16}
    assert bool(logits(mapped, batch).isfinite().all())
    mapped.to(torch.float64)
    assert {weight.dtype for weight in branch.parameters()} == {torch.float64}


def test_weights_that_lie_elsewhere(practised, batch, tmp_path):
    """accelerate's hooks bring them, module by module."""
    expected, state = logits(practised, batch), practised.state_dict()
    state = {name: weight.clone() for name, weight in state.items()}
    cpu_offload(practised, execution_device="cpu")
    assert practised.model.visual.branch.conv.weight.is_meta
    assert torch.equal(logits(practised, batch), expected)
    with pytest.raises(ValueError, match="the branch is on the device 'meta'"):
        training.save(practised, tmp_path)
    training.save(practised, tmp_path, state_dict=state)
    training.remove(practised)
    with pytest.raises(ValueError, match="the vision tower is on the device 'meta'"):
        training.load(practised, tmp_path)


def test_the_processor_is_told(model, processor, tmp_path):
    training.add_branch(model, processor)
    assert processor.image_processor.patch_parts is True
    training.save(model, tmp_path / training.FOLDER)
    training.remove(model, processor)
    assert "patch_parts" not in vars(processor.image_processor)
    training.load(model, tmp_path, processor)
    assert processor.image_processor.patch_parts is True
    training.remove(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked, its_processor = load_checkpoint(str(tmp_path), "cpu", "float32")
    assert its_processor.image_processor.patch_parts is True
    assert "branch" in dict(asked.model.visual.named_children())


def test_a_gathered_state_dict_is_saved(practised, tmp_path):
    state = {name: weight + 1 for name, weight in practised.state_dict().items()}
    training.save(practised, tmp_path, state_dict=state)
    found = load_file(tmp_path / "branch.safetensors")
    assert torch.equal(found["zero.bias"], practised.model.visual.branch.zero.bias + 1)
    with pytest.raises(ValueError, match="state dict with nothing of the branch"):
        training.save(practised, tmp_path, state_dict={"lm_head.weight": torch.zeros(1)})


def test_the_model_card(practised, tmp_path):
    training.save(practised, tmp_path)
    card, name = (tmp_path / "README.md").read_text(encoding="utf-8"), practised.config._name_or_path
    assert f"base_model: {name}" in card
    assert "{" not in card
    (tmp_path / "README.md").write_text("Mine.", encoding="utf-8")
    training.save(practised, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "Mine."
    config = json.loads((tmp_path / "branch_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == name


def test_a_second_branch_is_refused(practised, tmp_path):
    training.save(practised, tmp_path)
    with pytest.raises(ValueError, match="has a branch already"):
        training.add_branch(practised)
    with pytest.raises(ValueError, match="has a branch already"):
        training.load(practised, tmp_path)


def test_what_has_no_branch_is_neither_saved_nor_removed(model, tmp_path):
    for refused in (lambda: training.save(model, tmp_path / "no"), lambda: training.remove(model)):
        with pytest.raises(ValueError, match="has no branch"):
            refused()
    assert not (tmp_path / "no").exists()
    with pytest.raises(OSError, match=r"has no branch_config\.json"):
        training.load(model, tmp_path)


def test_models_that_cannot_have_one(model):
    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    with pytest.raises(TypeError, match=r"BertModel has no vision tower.*Qwen2-VL"):
        training.add_branch(BertModel(tiny))
    with torch.device("meta"):
        nowhere = type(model)(model.config)
    with pytest.raises(ValueError, match="on the device 'meta'"):
        training.add_branch(nowhere)
    assert not hasattr(model.config.vision_config, "patch_branch")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("formula", 2, "formula 2"),
        ("family", "qwen3_vl", "is for .*'qwen3_vl'"),
        ("width", 1280, "is for .*1280"),
        ("text_width", 1536, "is for .*1536"),
    ],
)
def test_another_models_branch_is_refused(name, value, sentence, practised, load_model, tmp_path):
    training.save(practised, tmp_path)
    path = tmp_path / "branch_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {name: value}), encoding="utf-8")
    model = load_model()
    with pytest.raises(ValueError, match=sentence):
        training.load(model, tmp_path)
    assert not hasattr(model.model.visual, "branch")


def test_damaged_weights_are_refused(practised, load_model, tmp_path):
    training.save(practised, tmp_path)
    weights = load_file(tmp_path / "branch.safetensors")
    save_file({"zero.bias": weights["zero.bias"]}, tmp_path / "branch.safetensors")
    model = load_model()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"not a branch's(?s:.*)conv\.weight"):
        training.load(model, tmp_path)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["branch.safetensors", "branch_config.json"])
def test_a_file_cut_short_is_named(name, practised, load_model, tmp_path):
    training.save(practised, tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        training.load(load_model(), tmp_path)


def test_a_path_that_leads_nowhere_is_named(model, tmp_path):
    for path in (tmp_path / "missing", tmp_path / "missing" / "branch.safetensors"):
        with pytest.raises(OSError, match=rf"{path} is not a folder; expected"):
            training.load(model, path)


def test_what_is_no_processor_changes_nothing(model, practised, processor, tmp_path):
    training.save(practised, tmp_path)
    training.remove(practised)
    before = state_of(model)
    for refused in (training.add_branch, lambda *given: training.load(given[0], tmp_path, given[1])):
        with pytest.raises(TypeError, match="processor is a Qwen2VLImageProcessor: expected the model's processor"):
            refused(model, processor.image_processor)
        assert state_of(model) == before


def test_a_model_inside_another_module(practised, load_model, batch, tmp_path):
    """As a distributed trainer wraps it."""
    training.save(torch.nn.Sequential(practised), tmp_path)
    model = load_model()
    training.load(torch.nn.Sequential(model), tmp_path)
    assert torch.equal(logits(model, batch), logits(practised, batch))
    with pytest.raises(TypeError, match=r"is a part of a model; expected the whole"):
        training.save(model.model.visual, tmp_path)


def test_a_checkpoint_of_another_formula_is_refused(practised, tmp_path):
    practised.config.vision_config.patch_branch = 7
    practised.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a branch of formula 7"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_with_the_patch_off(practised, processor, prompt, half_plain, upstream, batch):
    """What has a branch is a stock model then, until the patch is on again."""
    expected, state = logits(practised, batch), dict(practised.state_dict())
    with upstream():
        whole = processor(images=half_plain, text=prompt(), return_tensors="pt")
        found = logits(practised, whole)
        with pytest.raises(TypeError, match="has no vision tower that reads adaptive patches"):
            training.remove(practised)
    assert state.keys() == practised.state_dict().keys()
    assert torch.equal(logits(practised, batch), expected)
    training.remove(practised)
    assert torch.equal(logits(practised, whole), found)
    assert transformers_apt.status().active
    let_learn(training.add_branch(practised))
