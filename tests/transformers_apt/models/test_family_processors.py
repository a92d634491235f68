"""Each family's own processor, and the one that AutoProcessor makes: every method, map and way to pass a setting.

Patches have the family's own side: 14, 28 and 56 px, or 16, 32 and 64 px with another normalisation.
"""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoProcessor, Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from apt_code import InvalidLayoutError, PatchTokenizer
from apt_code.entropy_utils import IMPORTANCE_METHODS
from tests.transformers_apt.models.references import layouts_of, naive_rows
from transformers_apt.embedded.tiny_checkpoint import _KINDS
from transformers_apt.models.settings import ENVIRONMENT

pytestmark = pytest.mark.every_family

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
OFF = {"patch_selection_method": "off"}
METHODS = (("v1", 1.0), ("v2", 0.5), ("budget", 0.3), ("joint", 0.4))
BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
SETTINGS = [
    {"patch_selection_method": method, "alpha": alpha, "importance_method": name}
    for (method, alpha), name in itertools.product(METHODS, sorted(IMPORTANCE_METHODS))
]


@pytest.fixture
def whole_cells(processor, half_plain):
    """Whole 28- or 32-px cells, so that nothing is resized."""
    unit = 2 * processor.image_processor.patch_size
    return half_plain.crop((0, 0, *(side // unit * unit for side in half_plain.size)))


def tokenized(image, patch_size, settings):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    (layout,) = PatchTokenizer(num_scales=3, base_patch_size=patch_size, **settings).select_layouts(pixels)
    return layout


def own_processor(family, folder):
    return getattr(transformers, _KINDS[family].processor).from_pretrained(folder)


def test_patches_have_the_familys_size_and_normalisation(family, processor):
    image_processor = processor.image_processor
    older = family in ("qwen2_vl", "qwen2_5_vl")
    assert image_processor.patch_size == (14 if older else 16)
    assert (list(image_processor.image_mean) == [0.5] * 3) == (not older)


@pytest.mark.every_family(moe=True)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_method_and_map_at_the_familys_own_size(backend, family, folder, processor, prompt, whole_cells):
    """The layout is the algorithm's at that size; rows and placeholders follow it."""
    own = own_processor(family, folder)
    assert type(processor) is type(own)
    patch_size, seen = processor.image_processor.patch_size, set()
    processor.image_processor = own.image_processor = backend.from_pretrained(folder)
    for settings in SETTINGS:
        batch = processor(images=whole_cells, text=prompt(), return_tensors="pt", images_kwargs=settings)
        (layout,) = layouts_of(batch)
        assert torch.equal(layout.patches, tokenized(whole_cells, patch_size, settings).patches), settings
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == layout.num_language_tokens
        assert torch.equal(batch["input_ids"] == processor.image_token_id, batch["mm_token_type_ids"] == 1)
        seen.add(layout.patches.numpy().tobytes())
    assert len(seen) > len(SETTINGS) // 2, "the settings are meant to differ"
    expected = naive_rows(whole_cells, layout, processor.image_processor)
    torch.testing.assert_close(batch["pixel_values"].double(), expected, atol=1e-5, rtol=0)
    again = own(images=whole_cells, text=prompt(), return_tensors="pt", images_kwargs=settings)
    assert all(torch.equal(again[name], value) for name, value in batch.items())


def test_every_way_to_pass_settings(processor, prompt, half_plain):
    budget = {**BUDGET, "importance_method": "upsample_mse", "drop_tolerance": 30}
    wanted = processor.image_processor(images=half_plain, return_tensors="pt", **budget)["image_patch_layout"]
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    message = [{"role": "user", "content": [{"type": "image", "image": half_plain}, {"type": "text", "text": "Hi"}]}]
    chat = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    ways = [
        processor(**call, images_kwargs=budget),
        processor(**call, **budget),
        processor.apply_chat_template(message, **chat, processor_kwargs={"images_kwargs": budget}),
        processor.apply_chat_template(message, **chat, processor_kwargs=dict(budget)),  # upstream writes into it
        processor.apply_chat_template(message, **chat, images_kwargs=budget),
        processor.apply_chat_template(message, **chat, **budget),
    ]
    for name, value in budget.items():
        setattr(processor.image_processor, name, value)
    ways += [processor(**call), processor.apply_chat_template(message, **chat)]
    for number, way in enumerate(ways):
        assert torch.equal(way["image_patch_layout"], wanted), number
    off = processor(**call, images_kwargs=OFF)
    assert "image_patch_layout" not in off
    assert int((off["mm_token_type_ids"] == 1).sum()) == int(off["image_grid_thw"].prod()) // 4


def test_settings_are_saved_and_loaded(family, processor, prompt, half_plain, upstream, tmp_path):
    for name, value in BUDGET.items():
        setattr(processor.image_processor, name, value)
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    expected = processor(**call)
    processor.save_pretrained(tmp_path)
    for again in (AutoProcessor.from_pretrained(tmp_path), own_processor(family, tmp_path)):
        found = again(**call)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    with upstream():
        stock = AutoProcessor.from_pretrained(tmp_path)(**call)
    assert "image_patch_layout" not in stock and len(stock["pixel_values"]) == int(stock["image_grid_thw"].prod())


def test_where_nobody_asked(family, processor, prompt, half_plain, upstream, caplog):
    """Qwen2-VL selects and says so once; the other families work as without the package, and say nothing."""
    logging.Logger.warning_once.cache_clear()
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    found = processor(**call)
    said = [record.getMessage() for record in caplog.records if "Adaptive patches" in record.getMessage()]
    if family == "qwen2_vl":
        assert "image_patch_layout" in found and said
        return
    with upstream():
        expected = processor(**call)
    assert not said and set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "image_patch_layout" not in processor.model_input_names


@pytest.mark.parametrize("way", ["call", "attribute", "environment"])
@pytest.mark.parametrize("setting", [{"alpha": 0.3}, {"importance_method": "upsample_mse"}], ids=str)
def test_a_setting_without_a_method(
    way, setting, family, processor, prompt, half_plain, upstream, monkeypatch, caplog
):
    """The family's own default method decides; where that is off, what has no effect is said and nothing changes."""
    logging.Logger.warning_once.cache_clear()
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    with upstream():
        expected = processor(**call)
    if way == "attribute":
        vars(processor.image_processor).update(setting)
    elif way == "environment":
        monkeypatch.setenv(ENVIRONMENT, json.dumps(setting))
    found = processor(**call, images_kwargs=setting if way == "call" else {})
    assert ("image_patch_layout" in found) == (family == "qwen2_vl")
    if family != "qwen2_vl":
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    if family != "qwen2_vl" or "alpha" in setting:
        assert "has no effect with patch_selection_method=" in caplog.text


def test_settings_of_the_environment(processor, prompt, half_plain, monkeypatch):
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    expected = processor(**call, images_kwargs=BUDGET)
    monkeypatch.setenv(ENVIRONMENT, json.dumps(BUDGET))
    found = processor(**call)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "image_patch_layout" not in processor(**call, images_kwargs=OFF)


def test_subclasses_of_the_familys_processor(processor, prompt, half_plain):
    class Mine(type(processor)):
        pass

    mine = Mine(processor.image_processor, processor.tokenizer, processor.video_processor)
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    assert "image_patch_layout" not in mine(**call)
    found, expected = (one(**call, images_kwargs=BUDGET) for one in (mine, processor))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("settings", [OFF, BUDGET], ids=["off", "budget"])
@pytest.mark.parametrize("way", ["forward", "generate"])
def test_rows_of_another_patch_size_are_refused(settings, way, model, processor, prompt, half_plain):
    """14-px rows in a model of 16-px patches, or the other way round: another family's processor made them."""
    processor.image_processor.patch_size = {14: 16, 16: 14}[processor.image_processor.patch_size]
    batch = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=settings)
    with (
        pytest.raises(InvalidLayoutError, match=r"rows of \d+ values, expected \d+.*another family's processor"),
        torch.no_grad(),
    ):
        getattr(model, way)(**batch)
