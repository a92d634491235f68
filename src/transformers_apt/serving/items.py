"""The layout among the fields that vLLM keeps of each image."""

from collections.abc import Mapping
from typing import Any

from apt_code.patch_layout import PatchLayout
from transformers_apt.models.layouts import COUNTS_KEY, LAYOUT_KEY, unpack

GRIDS = "image_grid_thw"


def layout_of(item: Mapping[str, Any] | None) -> PatchLayout | None:
    """The layout of one image as vLLM keeps it, field by field; `None` where it has upstream's patches, or is none."""
    if item is None or LAYOUT_KEY not in item:
        return None
    grids, counts = item[GRIDS].data.reshape(1, 3), item[COUNTS_KEY].data.reshape(1)
    (layout,) = unpack(item[LAYOUT_KEY].data, grids, counts)
    return layout
