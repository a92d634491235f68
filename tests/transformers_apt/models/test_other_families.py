"""Families that are not supported share the image processor: through their processors nothing changes, and nothing
does through those of the supported ones where nobody asked."""

import json
import pickle

import numpy as np
import pytest
import torch
from transformers import (
    ColQwen2Processor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.processing_utils import ProcessorMixin

from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen2_5(image_processor):
    return Qwen2_5_VLProcessor(image_processor, build_tokenizer(), Qwen2VLVideoProcessor())


def qwen3(image_processor):
    return Qwen3VLProcessor(image_processor, build_tokenizer(), Qwen3VLVideoProcessor())


def colqwen2(image_processor):
    return ColQwen2Processor(image_processor, build_tokenizer())


def own_processor(image_processor):
    """A family that this package has never heard of."""

    class SomebodysProcessor(ProcessorMixin):
        def __init__(self, image_processor=None, tokenizer=None):
            super().__init__(image_processor, tokenizer)

    return SomebodysProcessor(image_processor, build_tokenizer())


FAMILIES = (qwen2_5, qwen3, colqwen2, own_processor)
UNSUPPORTED = (colqwen2, own_processor)
unsupported = pytest.mark.parametrize("family", UNSUPPORTED, ids=lambda family: family.__name__)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
both_backends = pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])


def call(family, photos):
    """Arguments that suit the family: ColQwen2 takes images or text, the unknown one has no placeholders."""
    text = {"text": [IMAGE + "Hi", f"{IMAGE}{IMAGE} And these?"], "padding": True}
    return {"images": photos, "return_tensors": "pt", **(text if family in (qwen2_5, qwen3) else {})}


@every_family
@both_backends
def test_nothing_changes(family, backend, photos, upstream):
    with upstream():
        expected = family(backend())(**call(family, photos))
    for settings in ({}, {"patch_selection_method": "off"}):
        found = family(backend())(**call(family, photos), images_kwargs=settings)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@unsupported
@both_backends
@pytest.mark.parametrize("method", ["budget", "v1", "v2"])
def test_adaptive_patches_are_refused(family, backend, method, photos):
    processor = family(backend())
    for settings in ({"images_kwargs": {"patch_selection_method": method}}, {"patch_selection_method": method}):
        with pytest.raises(ValueError) as refusal:
            processor(**call(family, photos), **settings)
        message = str(refusal.value)
        assert f"patch_selection_method={method!r} with {type(processor).__name__}" in message
        assert "supported for Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 only" in message and "'off'" in message


@unsupported
def test_an_image_processor_with_settings_of_its_own_is_refused(family, photos):
    """Somebody meant it: silently using another method would be a lie."""
    with pytest.raises(ValueError, match="patch_selection_method='budget' with"):
        family(Qwen2VLImageProcessor(**BUDGET))(**call(family, photos))
    by_attribute = Qwen2VLImageProcessor()
    by_attribute.patch_selection_method = "v2"
    with pytest.raises(ValueError, match="patch_selection_method='v2' with"):
        family(by_attribute)(**call(family, photos))
    off = family(by_attribute)(**call(family, photos), images_kwargs={"patch_selection_method": "off"})
    assert "image_patch_layout" not in off


@every_family
def test_a_processor_saved_with_the_default_loads_and_works(family, photos, tmp_path):
    """Nobody asked for anything, so nothing of it is on disk, and nothing comes back as somebody's wish."""
    image_processor = Qwen2VLImageProcessor()
    image_processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert not {"patch_selection_method", "alpha", "importance_method", "thresholds"} & set(saved)
    found = family(Qwen2VLImageProcessor.from_pretrained(tmp_path))(**call(family, photos))
    assert "image_patch_layout" not in found


def test_subclasses_of_the_supported_processor_are_supported(processor, half_plain):
    class Mine(Qwen2VLProcessor):
        pass

    mine = Mine(processor.image_processor, processor.tokenizer, processor.video_processor)
    batch = mine(images=half_plain, text=IMAGE, return_tensors="pt", images_kwargs=BUDGET)
    assert int((batch["input_ids"] == mine.image_token_id).sum()) < 12 * 16 // 4
    assert "image_patch_layout" in batch


@pytest.mark.parametrize("by_call", [False, True])
def test_subclasses_take_the_recommended_setting(processor, half_plain, by_call):
    """Its method is the default, so only its other settings say that somebody asked."""

    class Mine(Qwen2VLProcessor):
        pass

    recommended = {"importance_method": "upsample_mse", "thresholds": [36, 36]}
    own, given = ({}, recommended) if by_call else (recommended, {})
    mine = Mine(Qwen2VLImageProcessor(**own), processor.tokenizer, processor.video_processor)
    batch = mine(images=half_plain, text=IMAGE, return_tensors="pt", images_kwargs=given)
    assert len(batch["pixel_values"]) < 12 * 16 and "image_patch_layout" in batch


def test_processors_with_other_image_processors_are_not_touched(upstream):
    from transformers import CLIPImageProcessor, CLIPProcessor

    processor = CLIPProcessor(CLIPImageProcessor(), build_tokenizer())
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    with upstream():
        expected = processor(images=image, return_tensors="pt")
    found = processor(images=image, return_tensors="pt")
    assert set(found) == set(expected) and torch.equal(found["pixel_values"], expected["pixel_values"])


def test_pickled_processors_of_other_families(photos):
    twin = pickle.loads(pickle.dumps(qwen2_5(Qwen2VLImageProcessor())))
    assert "image_patch_layout" not in twin(**call(qwen2_5, photos))
