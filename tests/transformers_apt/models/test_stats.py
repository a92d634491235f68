"""`patch_stats` reads a processor's output alone."""

import pytest
import torch

from apt_code.patch_layout import InvalidLayoutError
from tests.transformers_apt.models.references import SELECTIONS
from transformers_apt import image_layouts, patch_stats


@pytest.mark.every_family
def test_stats_of_a_mixed_batch_agree_with_the_output(processor, photos):
    inputs = processor.image_processor(photos, patch_selection_method="budget", alpha=0.3, return_tensors="pt")
    patch_size = processor.image_processor.patch_size
    stats = patch_stats(inputs)
    assert stats == patch_stats(inputs, patch_size), "the size is in the rows"
    infos = processor.image_processor.last_budget_info
    assert [s["vision_patches"] for s in stats] == [info["actual"] for info in infos]
    assert sum(s["vision_patches"] for s in stats) == len(inputs["pixel_values"])
    for one, (_, h, w) in zip(stats, inputs["image_grid_thw"].tolist(), strict=True):
        assert one["grid"] == (h, w)
        assert sum(count * (side // patch_size) ** 2 for side, count in one["patches_by_px"].items()) == h * w
        assert one["retention"] == one["vision_patches"] / (h * w)


@pytest.mark.every_family
def test_language_tokens_are_the_placeholders(processor, prompt, half_plain):
    settings = {"patch_selection_method": "budget", "alpha": 0.3}
    inputs = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=settings)
    placeholders = int((inputs["input_ids"] == processor.image_token_id).sum())
    assert patch_stats(inputs)[0]["language_tokens"] == placeholders


def test_off_is_the_full_grid(processor, photos):
    inputs = processor.image_processor(photos[0], patch_selection_method="off", return_tensors="pt")
    (h, w) = inputs["image_grid_thw"][0, 1:].tolist()
    (stats,) = patch_stats(inputs)
    assert stats == {
        "grid": (h, w),
        "vision_patches": h * w,
        "patches_by_px": {14: h * w},
        "language_tokens": h * w // 4,
        "retention": 1.0,
        "dropped_cells": 0,
    }


def test_numpy_output_works_too(processor, photos):
    assert patch_stats(processor.image_processor(photos[0], return_tensors="np")) == patch_stats(
        processor.image_processor(photos[0], return_tensors="pt")
    )


@pytest.mark.parametrize("size", [14, 16, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_patch_size_is_read_from_the_rows(size, channels):
    rows = torch.zeros(16, channels * 2 * size**2)
    (stats,) = patch_stats({"pixel_values": rows, "image_grid_thw": torch.tensor([[1, 4, 4]])})
    assert stats["patches_by_px"] == {size: 16}


def test_refusals(inputs):
    with pytest.raises(KeyError, match="image_grid_thw"):
        image_layouts({"input_ids": torch.zeros(1, 3)})
    with pytest.raises(InvalidLayoutError, match="outside its grid"):
        image_layouts({**inputs, "image_grid_thw": torch.tensor([[1, 4, 4]])})


@pytest.mark.every_family
def test_what_was_left_out_is_counted(processor, prompt, photos):
    patch_size = processor.image_processor.patch_size
    call = {"images": photos, "text": prompt(3), "return_tensors": "pt"}
    inputs = processor(**call, images_kwargs=SELECTIONS["dropping"])
    stats, infos = patch_stats(inputs, patch_size), processor.image_processor.last_budget_info
    assert sum(one["language_tokens"] for one in stats) == int((inputs["input_ids"] == processor.image_token_id).sum())
    assert [one["vision_patches"] for one in stats] == [info["actual"] - info["dropped"] for info in infos]
    assert sum(info["dropped"] for info in infos) > 0
    for one in stats:
        h, w = one["grid"]
        covered = sum(count * (side // patch_size) ** 2 for side, count in one["patches_by_px"].items())
        assert covered + 4 * one["dropped_cells"] == h * w
    assert patch_stats({name: value.numpy() for name, value in inputs.items()}, patch_size) == stats
