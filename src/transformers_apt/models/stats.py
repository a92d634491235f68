"""What a processor call made of each image, read from its output alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from apt_code.patch_layout import PatchLayout
from transformers_apt.models.layouts import COUNTS_KEY, LAYOUT_KEY

PATCH_SIZE = 14
"""In pixels, Qwen2-VL's."""


def image_layouts(inputs: Mapping[str, Any]) -> list[PatchLayout]:
    """The tiling of every image of a processor's or image processor's output; uniform where the method was `off`.

    Raises:
        KeyError: the output of a call without images.
        InvalidLayoutError: layout and grid do not belong together.
    """
    if "image_grid_thw" not in inputs:
        raise KeyError("no 'image_grid_thw' in these inputs; expected the output of a processor call with images")
    grids = torch.as_tensor(inputs["image_grid_thw"])
    if LAYOUT_KEY in inputs:
        counts = torch.as_tensor(inputs[COUNTS_KEY]) if COUNTS_KEY in inputs else None
        return PatchLayout.unpack(torch.as_tensor(inputs[LAYOUT_KEY]), grids, counts)
    return [PatchLayout.uniform((h, w)) for _, h, w in grids.tolist()]


def patch_stats(inputs: Mapping[str, Any], patch_size: int | None = None) -> list[dict[str, Any]]:
    """Per image: `grid` (h, w), `vision_patches`, `patches_by_px` {side in px: count}, `language_tokens`, `retention`,
    `dropped_cells`, the merge cells that were left out.

    Args:
        inputs: the output of a processor call with images.
        patch_size: side of a base patch in pixels; read from the length of the rows where it is not given.
    """
    patch_size = patch_size or _patch_size(inputs)
    return [
        {
            "grid": layout.grid,
            "vision_patches": layout.num_patches,
            "patches_by_px": {size * patch_size: count for size, count in layout.patches_by_size.items()},
            "language_tokens": layout.num_language_tokens,
            "retention": layout.retention,
            "dropped_cells": layout.dropped_cells,
        }
        for layout in image_layouts(inputs)
    ]


def _patch_size(inputs: Mapping[str, Any]) -> int:
    """The side in pixels of the patches, of which a row holds two frames in one channel or three."""
    row = torch.as_tensor(inputs["pixel_values"]).shape[-1] if "pixel_values" in inputs else 0
    sides = ((math.isqrt(row // (2 * channels)), channels) for channels in (3, 1))
    return next((side for side, channels in sides if side and 2 * channels * side**2 == row), PATCH_SIZE)
