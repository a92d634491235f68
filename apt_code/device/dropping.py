"""Dropping by the flat rule alone, of byte images on a device: their sums are computed there, the walk is the host's.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches, `rows cols` cells of one size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.dropping import NO_RULE, Roots, Walk, check_sides, walk_units, without
from apt_code.importance.common import pooled_sum
from apt_code.patch_layout import MERGE_SIZE, PatchLayout

NOT_FLAT = -1
"""Stands in every channel for the sum of a cell that is not flat."""


def flat_sums(images: Tensor, patch_size: int, num_scales: int, tolerance: float) -> dict[int, Tensor]:
    """What the flat rule has to know of every cell that a patch could cover.

    The arithmetic is that of `apt_code.dropping`, in integers: the same to the bit on every device.

    Args:
        images: `(b, c, H, W)` uint8.
        patch_size: side of a base patch in pixels.
        num_scales: scales of the tiling, at most 4.
        tolerance: in grey levels.

    Returns:
        `{size: (b, c, rows, cols)}` int64 for each size of patches in base cells, 1 standing for a merge cell that is
        split: the sum of each complete cell's pixels, `NOT_FLAT` where it is not flat.
    """
    raster = images.detach().flatten(0, 1).to(torch.int32)  # (b·c, H, W), each value the sum of size × size pixels
    found = {}
    for size in (2**scale for scale in range(num_scales)):
        raster = raster if size == 1 else pooled_sum(raster)
        width = patch_size * (MERGE_SIZE if size == 1 else 1)  # of a cell's raster
        rows, cols = raster.shape[1] // width, raster.shape[2] // width
        cells = rearrange(raster[:, : rows * width, : cols * width], "n (r y) (q x) -> n r q y x", y=width, x=width)
        total, square = cells.sum((3, 4)), (cells * cells).sum((3, 4))  # int64 both
        # the difference fits 64 bits up to `LARGEST_SIDE`, also where its terms wrap around
        apart = (square * width**2 - total * total).double()
        limit = (tolerance * size**2) * (tolerance * size**2) * (width**4)
        flat = rearrange(apart <= limit, "(b c) r q -> b c r q", b=len(images)).all(1, keepdim=True)
        found[size] = torch.where(flat, rearrange(total, "(b c) r q -> b c r q", b=len(images)), NOT_FLAT)
    return found


def drop_flat(
    sums: Mapping[int, Tensor],
    image_size: tuple[int, int],
    layouts: Sequence[PatchLayout],
    patch_size: int,
    tolerance: float,
) -> list[PatchLayout]:
    """As `drop_repeats` by the flat rule alone, without the pixels.

    Args:
        sums: as `flat_sums` returns them for the same tolerance, on the host.
        image_size: `(H, W)`.
        layouts: one tiling per image, each whole.
        patch_size, tolerance: as `flat_sums`.

    Raises:
        ValueError: as `drop_repeats`.
    """
    check_sides(image_size, layouts, patch_size)
    found = []
    for i, layout in enumerate(layouts):
        known = _sums_of_patches({size: of_cells[i].numpy() for size, of_cells in sums.items()}, layout)
        found.append(_walk(known, layout, patch_size, tolerance))
    return without(layouts, found)


def _sums_of_patches(sums: Mapping[int, np.ndarray], layout: PatchLayout) -> np.ndarray:
    """`(n, c)` int64: what stands in the maps `(c, rows, cols)` of one image for each patch of its tiling."""
    rows, cols, sizes = layout.patches.numpy().T
    found = np.full((len(sizes), len(sums[1])), NOT_FLAT, np.int64)
    for size, of_cells in sums.items():
        (places,) = (sizes == size).nonzero()
        side = max(size, MERGE_SIZE)
        found[places] = of_cells[:, rows[places] // side, cols[places] // side].T
    return found


def _walk(sums: np.ndarray, layout: PatchLayout, patch_size: int, tolerance: float) -> Walk:
    """The walk over the units of an image that nobody sees."""
    unseen = np.empty((sums.shape[1], 0, 0), np.uint8)
    if can_compile(layout.patches, torch.int64):
        from apt_code import dropping_kernel

        patches, stays = layout.patches.contiguous().numpy(), np.ones(len(layout), np.bool_)
        cells = (layout.grid[0] // MERGE_SIZE, layout.grid[1] // MERGE_SIZE)
        sizes = int(np.bitwise_or.reduce(patches[:, 2]))
        with contextlib.suppress(KernelFailedError):
            run_kernel(
                dropping_kernel.walk_units,
                unseen, cells, patches, sizes, sums, patch_size, tolerance, NO_RULE, stays, unseen,
            )  # fmt: skip
            return Walk(stays, unseen)
    roots = Roots([one if one[0] >= 0 else None for one in sums], 1, layout, patch_size, tolerance)
    return walk_units(layout, roots, patch_size, NO_RULE, unseen)
