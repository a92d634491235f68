"""What a user would otherwise find out too late is said: arguments without effect, pixels that cannot be judged."""

import logging

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.utils import logging as transformers_logging

from transformers_apt.models.settings import DEFAULTS

BACKENDS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]


@pytest.fixture
def said(caplog):
    """The warnings of the selection settings, from a clean slate (`warning_once` remembers what it has said)."""
    logger = transformers_logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")
    type(logger).warning_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger=logger.name):
        yield lambda: {r.getMessage() for r in caplog.records if "notice appears once" not in r.getMessage()}


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"alpha": 0.1}, "alpha=0.1 has no effect with patch_selection_method='v1'"),
        ({"patch_selection_method": "budget", "alpha": 0.3, "thresholds": [9, 9]}, "thresholds=[9, 9] has no effect"),
        ({"patch_selection_method": "off", "importance_method": "laplacian"}, "importance_method=laplacian has no"),
        ({"patch_selection_method": "budget"}, "keeps every patch and saves nothing"),
    ],
)
def test_an_argument_without_effect_is_named(said, half_plain, settings, ignored):
    Qwen2VLImageProcessor()(half_plain, **settings)
    (message,) = said()
    assert ignored in message


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patch_selection_method": "v1", "thresholds": [4, 3], "importance_method": "laplacian"},
        {"patch_selection_method": "v2", "alpha": 0.5},
        {"patch_selection_method": "budget", "alpha": 0.5, "importance_method": "upsample_mse"},
        {"patch_selection_method": "off"},
    ],
)
def test_arguments_with_an_effect_are_not(said, half_plain, settings):
    Qwen2VLImageProcessor()(half_plain, **settings)
    assert said() == set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_attribute_without_effect_is_named(said, half_plain, backend):
    backend(alpha=0.3)(half_plain)
    (message,) = said()
    assert "alpha=0.3 has no effect with patch_selection_method='v1'" in message


def test_another_merge_size_turns_adaptive_patches_off_where_nobody_asked_for_them(said, half_plain):
    processor = Qwen2VLImageProcessor(merge_size=1)
    found = processor(half_plain, return_tensors="pt")
    off = processor(half_plain, return_tensors="pt", patch_selection_method="off")
    assert set(found) == set(off) and torch.equal(found["pixel_values"], off["pixel_values"])
    (message,) = said()
    assert "merge_size=1" in message and "stay off" in message
    with pytest.raises(ValueError, match="merge_size=1 with adaptive patches"):
        processor(half_plain, patch_selection_method="budget", alpha=0.5)


def test_an_attribute_that_another_method_uses_is_not(said, half_plain):
    processor = Qwen2VLImageProcessor(patch_selection_method="budget", alpha=0.3)
    processor(half_plain, patch_selection_method="v1")
    assert said() == set()


def floats(image, low, high):
    """The image as channels-first float32 between `low` and `high`."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    return pixels / 255 * (high - low) + low


@pytest.mark.parametrize(
    ("low", "high", "options"),
    [
        (0, 1, {"do_rescale": True}),
        (0, 255, {"do_rescale": False}),
        (-2.0, 2.0, {"do_rescale": False, "do_normalize": False}),
    ],
)
def test_floats_that_are_no_grey_levels_keep_every_patch(said, half_plain, low, high, options):
    image = floats(half_plain, low, high)
    found = Qwen2VLImageProcessor()(image, patch_selection_method="budget", alpha=0.3, **options)
    off = Qwen2VLImageProcessor()(image, patch_selection_method="off", **options)
    assert torch.equal(found["pixel_values"], off["pixel_values"])
    assert any("patches cannot be chosen on it" in message and "expected 0 to 255" in message for message in said())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("high", "options"), [(255, {}), (1, {"do_rescale": False})])
def test_floats_that_fit_are_chosen_on_like_bytes(said, half_plain, backend, high, options):
    settings = {"patch_selection_method": "budget", "alpha": 0.3, "do_resize": False}
    as_bytes = backend()(half_plain, **settings)
    as_floats = backend()(floats(half_plain, 0, high), **settings, **options)
    assert np.array_equal(as_bytes["image_patch_layout"], as_floats["image_patch_layout"])
    assert said() == set()


def test_one_unreadable_image_does_not_touch_its_neighbour(said, half_plain):
    good, bad = floats(half_plain, 0, 255), floats(half_plain, -300, 300)
    settings = {"patch_selection_method": "budget", "alpha": 0.3}
    both = Qwen2VLImageProcessor()([good, bad], **settings)
    alone = Qwen2VLImageProcessor()(good, **settings)
    rows = len(alone["pixel_values"])
    assert torch.equal(both["pixel_values"][:rows], alone["pixel_values"])
    assert len(both["pixel_values"]) - rows == int(both["image_grid_thw"][1].prod())


class ThirdParty(Qwen2VLProcessor):
    """As in packages that count patches from the grid themselves."""


def test_subclasses_get_adaptive_patches_only_when_asked(processor, prompt, half_plain):
    third = ThirdParty(
        processor.image_processor, processor.tokenizer, processor.video_processor, processor.chat_template
    )
    assert "image_patch_layout" not in third(images=half_plain, text=prompt())
    asked = {"patch_selection_method": "v1"}
    assert "image_patch_layout" in third(images=half_plain, text=prompt(), images_kwargs=asked)
    third.image_processor.patch_selection_method = "budget"
    assert "image_patch_layout" in third(images=half_plain, text=prompt())


def test_a_name_that_is_none_of_the_settings_brings_their_names(processor, prompt, half_plain):
    """Upstream's own error, with a note."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'method'") as caught:
        processor(images=half_plain, text=prompt(), images_kwargs={"method": "budget"})
    (note,) = caught.value.__notes__
    assert all(name in note for name in DEFAULTS)
