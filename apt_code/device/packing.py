"""Packing on a device: the host says once a call which patches are kept, and waits for nothing.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches, `p` base patch side, `t` frames.

All patches of a size are brought to the base raster, kept or not, and those that are kept are picked in canonical
order: what a GPU would save by computing fewer, its host would lose by telling it more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import Batch, check_places, patches_of


def write_rows(
    batches: Sequence[Batch], rows: Tensor, patch_size: int, frames: int, normalise: Callable[[Tensor], Tensor]
) -> None:
    """Write the rows of every image of a call to their places.

    Args:
        batches: all of them.
        rows: `(at least n, c·t·p·p)` float32, contiguous, on the device.
        patch_size, frames, normalise: as `RowPacker`.
    """
    batches = [batch for batch in batches if any(layout.num_patches for layout in batch[1])]
    if not batches:
        return
    chosen = [_Places.of(batch, patch_size) for batch in batches]
    # the one copy to the device, before any work there that it would have to queue behind
    index = torch.from_numpy(np.concatenate([places.kept for places in chosen])).to(rows.device, non_blocking=True)
    parts = index.split([len(places.kept) for places in chosen])
    for (images, layouts, starts), places, kept in zip(batches, chosen, parts, strict=True):
        every = _every_patch(images, patch_size, places.sizes)
        patches = normalise(every.index_select(0, kept.to(every.device))).float()
        # (n, c, p, p) -> (n, c, t, p·p)
        repeated = patches.flatten(2).unsqueeze(2).expand(-1, -1, frames, -1)
        for here, part in _runs(repeated, layouts, starts):
            rows[here : here + len(part)].view(part.shape).copy_(part)


class _Places(NamedTuple):
    """Which patches of a batch are kept.

    Attributes:
        sizes: that occur, ascending.
        kept: `(n,)` int64, where each patch stands in `_every_patch` of these sizes.
    """

    sizes: list[int]
    kept: np.ndarray

    @classmethod
    def of(cls, batch: Batch, patch_size: int) -> _Places:
        images, layouts, _ = batch
        patches = patches_of(images, layouts, patch_size)
        check_places(patches, layouts)
        row, col, size = patches.numpy().T
        image = np.repeat(np.arange(len(layouts)), [len(layout) for layout in layouts])
        sizes = [int(found) for found in np.flatnonzero(np.bincount(size))]
        h, w = layouts[0].grid
        begins, heights, widths = np.zeros((3, max(sizes, default=0) + 1), np.int64)
        begin = 0
        for one in sizes:
            begins[one], heights[one], widths[one] = begin, -(-h // one), -(-w // one)
            begin += len(images) * heights[one] * widths[one]
        index = begins[size] + (image * heights[size] + row // size) * widths[size] + col // size
        return cls(sizes, index)


def _every_patch(images: Tensor, patch_size: int, sizes: Sequence[int]) -> Tensor:
    """Size by size, image by image, in raster order: each patch on the base raster, `(all of them, c, p, p)` float32.

    Images are zero-padded up to whole patches.
    """
    grids = [
        (-(-images.shape[-2] // (patch_size * size)), -(-images.shape[-1] // (patch_size * size))) for size in sizes
    ]
    counts = [len(images) * rows * cols for rows, cols in grids]
    found = images.new_empty((sum(counts), images.shape[1], patch_size, patch_size), dtype=torch.float32)
    pixels = images if sizes == [1] else images.float()
    for size, (rows, cols), part in zip(sizes, grids, found.split(counts), strict=True):
        side = patch_size * size
        padding = (0, cols * side - images.shape[-1], 0, rows * side - images.shape[-2])
        padded = F.pad(pixels, padding) if any(padding) else pixels
        raster = padded if size == 1 else F.avg_pool2d(padded, size)
        part.view(len(images), rows, cols, *part.shape[1:]).copy_(
            rearrange(raster, "b c (h p) (w q) -> b h w c p q", p=patch_size, q=patch_size)
        )
    return found


def _runs(patches: Tensor, layouts: Sequence[PatchLayout], starts: Sequence[int]) -> list[tuple[int, Tensor]]:
    """Where to write which patches: in one piece where the images follow each other."""
    lengths = [layout.num_patches for layout in layouts]
    if list(starts) == [starts[0] + before for before in itertools.accumulate([0, *lengths[:-1]])]:
        return [(starts[0], patches)]
    return list(zip(starts, patches.split(lengths), strict=True))
