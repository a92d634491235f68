"""The tilings of a call's batches: those on a device are read there, all of them, before the host asks once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apt_code.device import on_device
from apt_code.device.dropping import flat_sums
from apt_code.device.fetching import Evidence, fetch
from apt_code.patch_layout import PatchLayout

if TYPE_CHECKING:
    from apt_code.patch_tokenizer import PatchTokenizer

Selected = tuple[list[PatchLayout], dict[str, Any] | None]
"""The tilings of a batch, and its `last_budget_info`."""


def select_batches(tokenizer: PatchTokenizer, batches: Iterable[Tensor]) -> list[Selected]:
    """What `select_layouts` finds for each batch `(b, c, H, W)`; a GPU is waited for once for all of them."""
    found: list[Selected] = []
    waiting: dict[int, tuple[Tensor, Evidence]] = {}
    for i, images in enumerate(batches):
        if on_device(images):
            waiting[i] = images, _evidence(tokenizer, images)
            found.append(([], None))
        else:
            found.append((tokenizer.select_layouts(images), tokenizer.last_budget_info))
    if waiting:
        fetched = fetch([evidence for _, evidence in waiting.values()])
        for (i, (images, _)), evidence in zip(waiting.items(), fetched, strict=True):
            found[i] = _select(tokenizer, images, evidence)
    return found


def _evidence(tokenizer: PatchTokenizer, images: Tensor) -> Evidence:
    """What the tilings of a batch depend on, on the batch's device."""
    maps = tokenizer.maps_to_select_by(images)
    flat, predict = tokenizer.drop_tolerance, tokenizer.predict_tolerance
    if not tokenizer.drops:
        return Evidence(maps)
    if flat is None or predict is not None or images.dtype != torch.uint8:
        return Evidence(maps, pixels=images)
    return Evidence(maps, flat_sums(images, tokenizer.base_patch_size, tokenizer.num_scales, flat))


def _select(tokenizer: PatchTokenizer, images: Tensor, found: Evidence) -> Selected:
    """As `select_layouts`, by what was fetched of the images."""
    pixels = images if found.pixels is None else found.pixels
    return tokenizer.layouts_by(pixels, found.maps, found.sums), tokenizer.last_budget_info
