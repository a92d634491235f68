"""The layout among the fields that vLLM keeps of each image, and among those of a batch of images.

Axis legend: `n` patches of all images.
"""

from collections.abc import Mapping
from typing import Any

import torch

from apt_code.patch_layout import PatchLayout
from transformers_apt.models.layouts import LAYOUT_KEY, unpack

GRIDS = "image_grid_thw"


def patch_counts(outputs: Mapping[str, Any]) -> torch.Tensor:
    """`(images,)` int64: rows of each image of a processor's call that made layouts."""
    layouts = unpack(outputs[LAYOUT_KEY], outputs[GRIDS])
    return torch.tensor([layout.num_patches for layout in layouts], dtype=torch.int64)


def layout_of(item: Mapping[str, Any] | None) -> PatchLayout | None:
    """The layout of one image as vLLM keeps it, field by field; `None` where it has upstream's patches, or is none."""
    if item is None or LAYOUT_KEY not in item:
        return None
    (layout,) = unpack(item[LAYOUT_KEY].data, item[GRIDS].data.reshape(1, 3))
    return layout
