"""`TRANSFORMERS_APT_SETTINGS`: settings for programs whose calls cannot be edited."""

import json

import pytest
import torch
from transformers import (
    ColQwen2Processor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLVideoProcessor,
)

from transformers_apt.embedded.tiny_checkpoint import build_tokenizer
from transformers_apt.models.settings import ENVIRONMENT

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}


@pytest.fixture
def environment(monkeypatch):
    def say(value):
        monkeypatch.setenv(ENVIRONMENT, value if isinstance(value, str) else json.dumps(value))

    return say


@pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
def test_it_stands_between_the_attributes_and_the_default(backend, half_plain, environment):
    def layout(image_processor, **settings):
        return torch.as_tensor(image_processor(images=half_plain, **settings)["image_patch_layout"])

    budget, half = layout(backend(), **BUDGET), layout(backend(), **{**BUDGET, "alpha": 0.5})
    v1 = layout(backend(), patch_selection_method="v1")
    environment(BUDGET)
    assert torch.equal(layout(backend()), budget)
    assert torch.equal(layout(backend(alpha=0.5)), half), "an attribute wins, for its own setting"
    assert torch.equal(layout(backend(), alpha=0.5), half), "and so does the call"
    assert torch.equal(layout(backend(patch_selection_method="v1")), v1)
    environment({"patch_selection_method": "off"})
    assert "image_patch_layout" not in backend()(images=half_plain)
    assert torch.equal(layout(backend(), **BUDGET), budget)
    environment({**BUDGET, "drop_tolerance": 30})
    dropped = layout(backend())
    assert len(dropped) < len(budget)
    assert torch.equal(layout(backend(drop_tolerance="off")), budget)
    assert torch.equal(layout(backend(drop_tolerance=30), **BUDGET), dropped)
    environment({**BUDGET, "predict_tolerance": 100})
    assert torch.equal(layout(backend()), layout(backend(predict_tolerance=100), **BUDGET))
    assert torch.equal(layout(backend(predict_tolerance="off")), budget)
    environment({"patch_selection_method": None, "alpha": None})
    assert torch.equal(layout(backend()), v1), "null says nothing"


@pytest.mark.every_family
def test_it_reaches_owned_image_processors_and_whole_processors(processor, prompt, half_plain, environment):
    assert "image_patch_layout" not in processor.image_processor(images=half_plain)
    environment(BUDGET)
    alone = processor.image_processor(images=half_plain)
    whole = processor(images=half_plain, text=prompt())
    assert len(alone["image_patch_layout"]) == len(whole["image_patch_layout"]) < 12 * 16 // 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budget", "is no JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"method": "budget"}', "with keys among"),
        ('{"patch_selection_method": "bugdet"}', "'bugdet'"),
        ('{"patch_selection_method": "budget", "alpha": 3}', "alpha=3"),
        ('{"patch_selection_method": "budget", "alpha": "0.3"}', "'0.3'"),
        ('{"thresholds": [1]}', "expected 2 values"),
        ('{"alpha": NaN}', "alpha=nan"),
        ('{"alpha": 1e999}', "alpha=inf"),
        ('{"alpha": -1}', "alpha=-1"),
        ("[" * 100_000, "is no JSON"),
        ('{"drop_tolerance": -2}', "drop_tolerance=-2"),
        ('{"predict_tolerance": -2}', "predict_tolerance=-2"),
    ],
)
def test_a_bad_value_is_one_clear_error_at_first_use(text, words, processor, prompt, half_plain, environment):
    environment(text)
    calls = (
        lambda: processor(images=half_plain, text=prompt()),
        lambda: Qwen2VLImageProcessor()(images=half_plain),
        lambda: processor.image_processor(images=half_plain),
    )
    for call in calls:
        with pytest.raises(ValueError, match=ENVIRONMENT) as refusal:
            call()
        assert words in str(refusal.value) and text in str(refusal.value)
    off = {"patch_selection_method": "off"}
    assert "image_patch_layout" not in processor(images=half_plain, text=prompt(), images_kwargs=off)


def test_an_error_of_mixed_sources_names_the_variable(half_plain, environment):
    environment({"alpha": 2})
    with pytest.raises(ValueError, match=r"alpha=2 with 'budget'.*TRANSFORMERS_APT_SETTINGS"):
        Qwen2VLImageProcessor()(images=half_plain, patch_selection_method="budget")
    with pytest.raises(ValueError, match="alpha=3 with 'budget'") as refusal:
        Qwen2VLImageProcessor()(images=half_plain, patch_selection_method="budget", alpha=3)
    assert ENVIRONMENT not in str(refusal.value)


def test_a_family_that_is_not_supported_works_as_without_it(half_plain, environment, upstream):
    """The variable speaks to the whole process, which may hold a retriever beside its Qwen2-VL."""
    retriever = ColQwen2Processor(Qwen2VLImageProcessor(), build_tokenizer())
    with upstream():
        expected = retriever(images=half_plain, return_tensors="pt")
    environment(BUDGET)
    found = retriever(images=half_plain, return_tensors="pt")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_nothing_is_saved(environment, tmp_path):
    environment(BUDGET)
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), build_tokenizer(), Qwen2VLVideoProcessor())
    processor.save_pretrained(tmp_path)
    assert "budget" not in (tmp_path / "processor_config.json").read_text()
