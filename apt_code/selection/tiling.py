"""From what a rule would keep whole to the tiling: as masks, or as layouts.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from apt_code.compilation import KernelFailedError, run_kernel
from apt_code.importance.common import PAD_VALUE
from apt_code.patch_layout import PatchLayout
from apt_code.selection.common import as_arrays, can_select_compiled


def tile(maps: Mapping[int, Tensor], keep_whole: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Masks of the tiling that keeps a cell whole where asked to, largest first, and never outside the image."""
    sides = sorted(maps)
    masks: dict[int, Tensor] = {}
    free = torch.ones_like(maps[sides[-1]], dtype=torch.bool)
    for side, finer in zip(reversed(sides[1:]), reversed(sides[:-1]), strict=True):
        whole = free & keep_whole[side] & (maps[side] < PAD_VALUE)
        masks[side] = whole.float()
        rows, cols = maps[finer].shape[1:]
        free = (free & ~whole).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :rows, :cols]
    masks[sides[0]] = free.float()
    return {side: masks[side] for side in sides}


def lay_out(maps: Mapping[int, Tensor], keep_whole: Mapping[int, Tensor]) -> list[PatchLayout]:
    """One layout per image, on the host, of the tiling that keeps cells whole where a rule would, largest first."""
    if can_select_compiled(maps):
        b, h, w = maps[min(maps)].shape
        values = as_arrays(maps)[1:]
        whole = [keep & (found < PAD_VALUE) for keep, found in zip(as_arrays(keep_whole), values, strict=True)]
        with contextlib.suppress(KernelFailedError):
            parts = canonical_patches(whole, b, (h, w))
            return [PatchLayout((h, w), torch.from_numpy(part)) for part in parts]
    return PatchLayout.from_masks_of_batch(tile(maps, keep_whole))


def canonical_patches(whole: Sequence[np.ndarray], batch: int, grid: tuple[int, int]) -> list[np.ndarray]:
    """The patches of each image, `(n, 3)` int64 as `PatchLayout` has them.

    Args:
        whole: `(b, rows, cols)` bool for each coarse scale, finest first: where a cell is to stay whole. None sticks
            out of the image.
        batch, grid: how many images, and their base grid.

    Raises:
        KernelFailedError: the kernel cannot be compiled.
    """
    from apt_code.selection import tiling_kernel

    patches, counts = np.empty((batch * grid[0] * grid[1], 3), np.int64), np.empty(batch, np.int64)
    run_kernel(tiling_kernel.canonical_patches, tuple(whole), *grid, patches, counts)
    ends = [*itertools.accumulate(counts.tolist())]
    return [patches[start:end] for start, end in zip([0, *ends], ends, strict=False)]
