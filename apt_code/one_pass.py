"""`v1` over a map of loss, on the host: one kernel after the other, and no map, mask or layout in between.

For small images, making those takes longer than the kernels do. The tilings are those of the steps one by one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile
from apt_code.dropping import LARGEST_SIDE, compiled_walk
from apt_code.importance import IMPORTANCE_METHODS
from apt_code.importance.common import CHANNELS
from apt_code.importance.losses import kept_whole
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.selection.settings import check_thresholds
from apt_code.selection.tiling import canonical_patches

if TYPE_CHECKING:
    from apt_code.patch_tokenizer import PatchTokenizer


def select_in_one_pass(tokenizer: PatchTokenizer, images: Tensor) -> list[PatchLayout] | None:
    """What `select_layouts` finds, where the kernels can do it; `None` where they cannot, or where it is refused."""
    loss = IMPORTANCE_METHODS[tokenizer.importance_method].loss
    if loss is None or not _is_possible(tokenizer, images):
        return None
    thresholds = check_thresholds(tokenizer.thresholds, tokenizer.num_scales)  # which may have been set since
    tokenizer.last_budget_info = None
    patch_size, flat, predict = tokenizer.base_patch_size, tokenizer.drop_tolerance, tokenizer.predict_tolerance
    pixels = images.contiguous().numpy()  # one memory layout, so one compilation
    with contextlib.suppress(KernelFailedError):
        whole = kept_whole(pixels, patch_size, thresholds, loss)
        if whole is None:
            return None
        grid = tokenizer.grid_of(images)
        found = canonical_patches(whole, len(images), grid)
        if tokenizer.drops:
            for i, image in enumerate(pixels):
                found[i] = found[i].compress(compiled_walk(image, found[i], patch_size, flat, predict).stays, 0)
        return [PatchLayout(grid, torch.from_numpy(patches)) for patches in found]
    return None


def _is_possible(tokenizer: PatchTokenizer, images: Tensor) -> bool:
    if tokenizer.patch_selection_method != "v1" or tokenizer.num_scales == 1 or tokenizer.image_size is not None:
        return False
    if not can_compile(images) or images.ndim != 4 or images.shape[1] not in CHANNELS or not len(images):
        return False
    if not tokenizer.drops:
        return True
    cell, largest = tokenizer.base_patch_size * MERGE_SIZE, tokenizer.base_patch_size << tokenizer.num_scales - 1
    return not (images.shape[2] % cell or images.shape[3] % cell or largest > LARGEST_SIDE)
