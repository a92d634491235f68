"""Leaving out what repeats its neighbour: a plain region needs one patch, not hundreds.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches.

After the tiling, its *units* are visited: whole patches, and merge cells that are split into base patches. They go in
raster order of the coarsest patches, in Z-order within, so that what lies left of a unit and above it is always known.
A unit is *flat* where the raster that the model would read of it has a standard deviation of at most the tolerance, in
every channel. A flat unit is dropped where its mean lies within the tolerance, in every channel, of the *root colours*
of all flat cells that it touches on the left, or else above; it inherits the first one's root, so that nothing drifts
along a gradient. A flat unit that is kept is a root itself.

All sums are integers, so the result depends on no device, no order and no neighbour in the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.patch_layout import MERGE_SIZE, PatchLayout

FIXED_POINT = 256
"""Parts of a grey level that floating-point pixels are counted in."""

OFF = "off"
"""The tolerance that drops nothing, for a call whose `None` stands for "not given"."""

LARGEST_SIDE = 2048
"""Side of a patch in pixels up to which no sum leaves 64 bits: 255 · 256 · side⁴ of two colours that are compared."""


def check_tolerance(drop_tolerance: float | str | None) -> float | None:
    """The tolerance, or `None` for dropping nothing, which may also be written `"off"`.

    Raises:
        TypeError: not a number. ValueError: not from 0 to 255.
    """
    if drop_tolerance is None or (isinstance(drop_tolerance, str) and drop_tolerance == OFF):
        return None
    if isinstance(drop_tolerance, bool) or not isinstance(drop_tolerance, (int, float)):
        raise TypeError(
            f"drop_tolerance={drop_tolerance!r} of type {type(drop_tolerance).__name__}: expected a number of grey "
            f"levels, or {OFF!r} to drop nothing"
        )
    if not 0 <= drop_tolerance <= 255:
        raise ValueError(
            f"drop_tolerance={drop_tolerance}: expected grey levels from 0 to 255 (2 is recommended), or {OFF!r} to "
            "drop nothing"
        )
    return float(drop_tolerance)


def drop_flat(
    images: Tensor, layouts: Sequence[PatchLayout], drop_tolerance: float, patch_size: int
) -> list[PatchLayout]:
    """The layouts without the units that repeat their neighbour's colour.

    Args:
        images: `(b, c, H, W)` with values in [0, 255], made of whole merge cells.
        layouts: one tiling per image, each whole.
        drop_tolerance: in grey levels.
        patch_size: side of a base patch in pixels.

    Returns:
        One layout per image, of the patches that stay; the first merge cell always does.

    Raises:
        ValueError: images that are not made of whole merge cells, or patches of more than `LARGEST_SIDE` pixels.
    """
    found = _walk(images, layouts, drop_tolerance, patch_size)
    return [PatchLayout(layout.grid, layout.patches[walk.stays]) for layout, walk in zip(layouts, found, strict=True)]


def inherited_colours(image: Tensor, layout: PatchLayout, drop_tolerance: float, patch_size: int) -> Tensor:
    """What is shown in place of the cells that `drop_flat` leaves out of a tiling: the root colours they inherit.

    Args:
        image: `(c, H, W)`; with the other arguments as `drop_flat` was given them, the tiling still whole.

    Returns:
        `(c, H / merge cell, W / merge cell)` float32 grey levels; NaN where a merge cell stays.
    """
    (walk,) = _walk(image.unsqueeze(0), [layout], drop_tolerance, patch_size)
    colours = torch.from_numpy(walk.roots / np.maximum(walk.pixels, 1)[..., None]).float()  # (hm, wm, c)
    staying = layout.patches[walk.stays]
    for row, col, size in (staying // MERGE_SIZE).tolist():
        colours[row : row + max(size, 1), col : col + max(size, 1)] = torch.nan
    return rearrange(colours, "hm wm c -> c hm wm")


class _Walk(NamedTuple):
    """What a walk over the units of an image finds.

    Attributes:
        stays: `(n,)` bool, of each patch.
        roots: `(hm, wm, c)`, of each flat merge cell: the root colour, as the sum over so many pixels.
        pixels: `(hm, wm)` int64, so many; 0 where a cell is not flat.
    """

    stays: Tensor
    roots: np.ndarray
    pixels: np.ndarray


def _walk(images: Tensor, layouts: Sequence[PatchLayout], tolerance: float, patch_size: int) -> list[_Walk]:
    height, width = images.shape[-2:]
    cell = patch_size * MERGE_SIZE
    if height % cell or width % cell:
        raise ValueError(
            f"images of {height}×{width} px with drop_tolerance: expected sides that are multiples of {cell} px; "
            f"resize them, or pass {OFF!r} to drop nothing"
        )
    side = patch_size * max((max(layout.patches_by_size) for layout in layouts), default=1)
    if side > LARGEST_SIDE:
        raise ValueError(
            f"a patch of {side} px with drop_tolerance: expected at most {LARGEST_SIDE} px; build the layout with "
            f"fewer scales, or pass {OFF!r} to drop nothing"
        )
    images = images.detach().cpu()  # one copy: the walk takes its steps one by one, which a GPU would wait for
    if can_compile(images):
        from apt_code import dropping_kernel

        values = images.contiguous().numpy()  # one memory layout, so one compilation
        with contextlib.suppress(KernelFailedError):
            found = []
            for image, layout in zip(values, layouts, strict=True):
                stays = np.ones(len(layout), np.bool_)
                roots = np.zeros((height // cell, width // cell, len(image)), np.int64)
                pixels = np.zeros(roots.shape[:2], np.int64)
                patches = layout.patches.contiguous().numpy()
                run_kernel(dropping_kernel.keep_unlike, image, patches, tolerance, patch_size, stays, roots, pixels)
                found.append(_Walk(torch.from_numpy(stays), roots, pixels))
            return found
    return [_keep_unlike(image, layout, tolerance, patch_size) for image, layout in zip(images, layouts, strict=True)]


def _keep_unlike(image: Tensor, layout: PatchLayout, tolerance: float, patch_size: int) -> _Walk:
    """As `dropping_kernel.keep_unlike`, for any pixels, one unit after the other."""
    exact, unit = image, 1
    if exact.is_floating_point():
        exact, unit = (exact.double() * FIXED_POINT).round(), FIXED_POINT
    exact = exact.to(torch.int64)
    statistics = {size: _statistics(exact, size, patch_size) for size in layout.patches_by_size}
    rows, cols = (cells // MERGE_SIZE for cells in layout.grid)
    units = {(r // MERGE_SIZE, c // MERGE_SIZE): i for i, (r, c, _) in reversed([*enumerate(layout.patches.tolist())])}
    roots = np.zeros((rows, cols, len(image)), np.int64)  # sums over this many pixels, so that comparing them is exact
    pixels = np.zeros((rows, cols), np.int64)
    stays = np.ones(len(layout), np.bool_)
    coarsest = max(layout.patches_by_size) // MERGE_SIZE or 1
    for row, col in _visits(rows, cols, coarsest):
        if (row, col) not in units:
            continue
        first = units[row, col]
        size = int(layout.patches[first, 2])
        side = max(1, size // MERGE_SIZE)  # of the unit, in merge cells
        totals, squares, values, area = statistics[size]
        total, square = totals[row // side][col // side], squares[row // side][col // side]
        limit = (tolerance * (area * unit)) * (tolerance * (area * unit)) * (values * values)
        if any(float(values * q - t * t) > limit for t, q in zip(total, square, strict=True)):
            continue
        root, size_of_root = np.array(total), values * area

        def alike(place: tuple[int, int], root: Any = root, count: int = size_of_root) -> bool:
            differences = abs(root * pixels[place] - roots[place] * count)
            return bool(pixels[place]) and bool((differences <= tolerance * unit * (count * pixels[place])).all())

        for beside in (_left(row, col, side), _above(row, col, side)):
            if beside and all(map(alike, beside)):
                stays[first : first + (MERGE_SIZE**2 if size == 1 else 1)] = False
                root, size_of_root = roots[beside[0]], pixels[beside[0]]
                break
        square_of_unit = (slice(row, row + side), slice(col, col + side))
        roots[square_of_unit], pixels[square_of_unit] = root, size_of_root
    return _Walk(torch.from_numpy(stays), roots / unit if unit > 1 else roots, pixels)


def _left(row: int, col: int, side: int) -> list[tuple[int, int]]:
    """The merge cells that touch a unit on the left, from the top."""
    return [(row + i, col - 1) for i in range(side)] if col else []


def _above(row: int, col: int, side: int) -> list[tuple[int, int]]:
    return [(row - 1, col + i) for i in range(side)] if row else []


def _statistics(pixels: Tensor, size: int, patch_size: int) -> tuple[list, list, int, int]:
    """Sums and sums of squares, per channel, over the raster of each cell of patches of this size.

    Args:
        pixels: `(c, H, W)` int64.
        size: of a patch in base cells; 1 stands for a merge cell that is split.
        patch_size: side of a base patch in pixels.

    Returns:
        Two nested lists `[row][col][channel]`; the number of values in a raster; the pixels that one value sums up.
    """
    side = patch_size * max(size, MERGE_SIZE)
    complete = pixels[:, : pixels.shape[1] // side * side, : pixels.shape[2] // side * side]
    # (c, H, W) -> (rows, cols, c, values of the raster), each the sum of size × size pixels
    raster = rearrange(
        complete, "c (r y i) (q x j) -> r q c (y x) (i j)", y=side // size, x=side // size, i=size, j=size
    ).sum(-1)
    return raster.sum(-1).tolist(), (raster * raster).sum(-1).tolist(), (side // size) ** 2, size * size


def _visits(rows: int, cols: int, side: int) -> Iterator[tuple[int, int]]:
    """Every merge cell of a grid: squares of the coarsest patch in raster order, Z-order within."""
    for top in range(0, rows, side):
        for left in range(0, cols, side):
            for place in range(side * side):
                row, col = top, left
                for bit in range(side.bit_length()):
                    col += (place >> 2 * bit & 1) << bit
                    row += (place >> 2 * bit + 1 & 1) << bit
                if row < rows and col < cols:
                    yield row, col
