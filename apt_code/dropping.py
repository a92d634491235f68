"""Leaving out what repeats its neighbour: a plain region needs one patch, not hundreds.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches.

After the tiling, its *units* are visited: whole patches, and merge cells that are split into base patches. They go in
raster order of the coarsest patches, in Z-order within, so that what lies left of a unit and above it is always known.
There are two rules; each works with or without the other, and the first one that applies decides.

*Flat* (`drop_tolerance`): a unit is flat where the raster that the model would read of it has a standard deviation of
at most the tolerance, in every channel. A flat unit is dropped where its mean lies within the tolerance, in every
channel, of the *root colours* of all flat cells that it touches on the left, or else above; it inherits the first
one's root, so that nothing drifts along a gradient. A flat unit that is kept is a root itself.

*Predictable* (`predict_tolerance`): a unit is dropped where no pixel of it differs by more than the tolerance from the
neighbour that it is likely to repeat, and inherits that one's pixels. That is the square of its size on the left; or
the one above, where the upper left is like the left and not like the upper: then nothing changes downwards there, and
something does to the right (LOCO-I's test, as in PixelPrune, arXiv 2604.00886). What is compared is what is left of
the picture: a coarse patch as its averages, a dropped unit as what it inherits, all in whole grey levels.

All arithmetic is of integers, so the result depends on no device, no order and no neighbour in the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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

NO_RULE = -1.0
"""The tolerance of a rule that is off, for a kernel, which wants a number."""


def _as_number(tolerance: float | None) -> float:
    """A tolerance for a kernel, which wants a number: a negative one where the rule is off."""
    return NO_RULE if tolerance is None else float(tolerance)


def check_tolerance(value: float | str | None, name: str = "drop_tolerance") -> float | None:
    """The tolerance of a rule, or `None` where it is off, which may also be written `"off"`.

    Raises:
        TypeError: not a number. ValueError: not from 0 to 255.
    """
    if value is None or (isinstance(value, str) and value == OFF):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name}={value!r} of type {type(value).__name__}: expected a number of grey levels, or {OFF!r} to drop "
            "nothing by it"
        )
    if not 0 <= value <= 255:
        advice = " (2 is recommended)" if name == "drop_tolerance" else ""
        raise ValueError(
            f"{name}={value}: expected grey levels from 0 to 255{advice}, or {OFF!r} to drop nothing by it"
        )
    return float(value)


def drop_repeats(
    images: Tensor,
    layouts: Sequence[PatchLayout],
    patch_size: int,
    drop_tolerance: float | None,
    predict_tolerance: float | None = None,
) -> list[PatchLayout]:
    """The layouts without the units that repeat their neighbour's colour, or its pixels.

    Args:
        images: `(b, c, H, W)` with values in [0, 255], made of whole merge cells.
        layouts: one tiling per image, each whole.
        patch_size: side of a base patch in pixels.
        drop_tolerance, predict_tolerance: of each rule in grey levels; `None` leaves it out.

    Returns:
        One layout per image, of the patches that stay; the first merge cell always does.

    Raises:
        ValueError: images that are not made of whole merge cells, or patches of more than `LARGEST_SIDE` pixels.
    """
    found = _walk(images, layouts, patch_size, drop_tolerance, predict_tolerance, predict_tolerance is not None)
    return without(layouts, found)


def without(layouts: Sequence[PatchLayout], found: Sequence[Walk]) -> list[PatchLayout]:
    """The layouts without what the walks leave out."""
    # by numpy, which takes a fifth of the time of a tensor's own selection
    kept = (layout.patches.numpy().compress(walk.stays, 0) for layout, walk in zip(layouts, found, strict=True))
    return [PatchLayout(layout.grid, torch.from_numpy(part)) for layout, part in zip(layouts, kept, strict=True)]


def inherited_pixels(
    image: Tensor,
    layout: PatchLayout,
    patch_size: int,
    drop_tolerance: float | None,
    predict_tolerance: float | None = None,
) -> Tensor:
    """What stands in place of the cells that `drop_repeats` leaves out: the colour or the pixels that they inherit.

    Args:
        image: `(c, H, W)`; with the other arguments as `drop_repeats` was given them, the tiling still whole.

    Returns:
        `(c, H, W)` uint8, of the whole picture; where a cell stays, what a model reads of it.
    """
    (walk,) = _walk(image.unsqueeze(0), [layout], patch_size, drop_tolerance, predict_tolerance, True)
    return torch.from_numpy(walk.seen)


class Walk(NamedTuple):
    """What a walk over the units of an image finds.

    Attributes:
        stays: `(n,)` bool, of each patch.
        seen: `(c, H, W)` uint8, what is left of the picture; `(c, 0, 0)` where nobody asked.
    """

    stays: np.ndarray
    seen: np.ndarray


def _walk(
    images: Tensor,
    layouts: Sequence[PatchLayout],
    patch_size: int,
    flat: float | None,
    predict: float | None,
    show: bool,
) -> list[Walk]:
    """One walk per image; `show` asks for what is seen."""
    check_sides((images.shape[-2], images.shape[-1]), layouts, patch_size)
    images = images.detach().cpu()  # one copy: the walk takes its steps one by one, which a GPU would wait for
    if can_compile(images):
        values = images.contiguous().numpy()  # one memory layout, so one compilation
        with contextlib.suppress(KernelFailedError):
            return [
                compiled_walk(image, layout.patches.contiguous().numpy(), patch_size, flat, predict, show)
                for image, layout in zip(values, layouts, strict=True)
            ]
    return [
        _keep_unlike(image, layout, patch_size, _as_number(flat), _as_number(predict), show)
        for image, layout in zip(images, layouts, strict=True)
    ]


def compiled_walk(
    image: np.ndarray,
    patches: np.ndarray,
    patch_size: int,
    flat: float | None,
    predict: float | None,
    show: bool = False,
) -> Walk:
    """The walk over one image by the kernel, with its arguments; `None` for a rule that is off.

    Raises:
        KernelFailedError: it cannot be compiled.
    """
    from apt_code import dropping_kernel

    stays = np.ones(len(patches), np.bool_)
    seen = image.copy() if show or predict is not None else np.empty((len(image), 0, 0), np.uint8)
    tolerances = _as_number(flat), _as_number(predict)
    run_kernel(dropping_kernel.keep_unlike, image, patches, patch_size, *tolerances, stays, seen)
    return Walk(stays, seen)


def check_sides(image_size: tuple[int, int], layouts: Sequence[PatchLayout], patch_size: int) -> None:
    """Refuse what no rule of dropping can be asked of."""
    height, width = image_size
    cell = patch_size * MERGE_SIZE
    if height % cell or width % cell:
        raise ValueError(
            f"images of {height}×{width} px with drop_tolerance or predict_tolerance: expected sides that are "
            f"multiples of {cell} px; resize them, or pass {OFF!r} to drop nothing"
        )
    side = patch_size * max((int(layout.sizes.max()) for layout in layouts), default=1)
    if side > LARGEST_SIDE:
        raise ValueError(
            f"a patch of {side} px with drop_tolerance or predict_tolerance: expected at most {LARGEST_SIDE} px; "
            f"build the layout with fewer scales, or pass {OFF!r} to drop nothing"
        )


def _keep_unlike(image: Tensor, layout: PatchLayout, patch_size: int, flat: float, predict: float, show: bool) -> Walk:
    """As `dropping_kernel.keep_unlike`, for any pixels, one unit after the other."""
    exact, unit = image, 1
    if exact.is_floating_point():
        exact, unit = (exact.double() * FIXED_POINT).round(), FIXED_POINT
    exact = exact.to(torch.int64)
    sums = _sums_where_flat(exact, unit, layout, patch_size, flat)
    seen = _as_read(exact, unit, layout, patch_size) if show else np.empty((len(image), 0, 0), np.uint8)
    return walk_units(layout, Roots(sums, unit, layout, patch_size, flat), patch_size, predict, seen)


def walk_units(layout: PatchLayout, roots: Roots, patch_size: int, predict: float, seen: np.ndarray) -> Walk:
    """As `dropping_kernel.walk_units`, one unit after the other; `seen` is empty where nobody asks."""
    rows, cols = (cells // MERGE_SIZE for cells in layout.grid)
    units = {(r // MERGE_SIZE, c // MERGE_SIZE): i for i, (r, c, _) in reversed([*enumerate(layout.patches.tolist())])}
    stays = np.ones(len(layout), np.bool_)
    coarsest = max(layout.patches_by_size) // MERGE_SIZE or 1
    for row, col in _visits(rows, cols, coarsest):
        if (row, col) not in units:
            continue
        first = units[row, col]
        size = int(layout.patches[first, 2])
        side = max(1, size // MERGE_SIZE)  # of the unit, in merge cells
        here = _pixels_of(row, col, side, patch_size)
        colour = roots.inherited(first, row, col, side)
        if colour is not None:
            if seen.size:
                seen[here] = colour[:, None, None]
        else:
            likely = _likely(seen, row, col, side, patch_size, predict) if predict >= 0 else None
            if likely is None or _apart(seen[here], likely) > predict:
                continue
            seen[here] = likely.copy()
            roots.forget(row, col, side)
        stays[first : first + (MERGE_SIZE**2 if size == 1 else 1)] = False
    return Walk(stays, seen)


# -------------------------------------------------------------------- flat


class Roots:
    """The root colours of the flat merge cells that were visited: exact, as sums over so many pixels."""

    def __init__(
        self, sums: Sequence[np.ndarray | None], unit: int, layout: PatchLayout, patch_size: int, tolerance: float
    ) -> None:
        self.unit, self.tolerance, self.patch_size = unit, tolerance, patch_size
        self.of_units = sums
        rows, cols = (cells // MERGE_SIZE for cells in layout.grid)
        channels = max((len(one) for one in sums if one is not None), default=0)
        self.sums = np.zeros((rows, cols, channels), np.int64)
        self.pixels = np.zeros((rows, cols), np.int64)  # 0 where a cell is not flat

    def inherited(self, first: int, row: int, col: int, side: int) -> np.ndarray | None:
        """The colour, in whole grey levels, that a unit inherits where it is dropped; a flat one is remembered."""
        root, count, found = self.of_units[first], (side * MERGE_SIZE * self.patch_size) ** 2, False
        if root is None:
            return None
        for beside in (_left(row, col, side), _above(row, col, side)):
            if beside and all(self._alike(place, root, count) for place in beside):
                root, count, found = self.sums[beside[0]], int(self.pixels[beside[0]]), True
                break
        here = (slice(row, row + side), slice(col, col + side))
        self.sums[here], self.pixels[here] = root, count
        return (2 * root + count * self.unit) // (2 * count * self.unit) if found else None

    def forget(self, row: int, col: int, side: int) -> None:
        """Of a unit that inherits pixels, and so has no colour to hand on."""
        self.pixels[row : row + side, col : col + side] = 0

    def _alike(self, place: tuple[int, int], root: np.ndarray, count: int) -> bool:
        pixels = int(self.pixels[place])
        differences = abs(root * pixels - self.sums[place] * count)
        return pixels > 0 and bool((differences <= self.tolerance * self.unit * (count * pixels)).all())


def _left(row: int, col: int, side: int) -> list[tuple[int, int]]:
    """The merge cells that touch a unit on the left, from the top."""
    return [(row + i, col - 1) for i in range(side)] if col else []


def _above(row: int, col: int, side: int) -> list[tuple[int, int]]:
    return [(row - 1, col + i) for i in range(side)] if row else []


def _sums_where_flat(
    exact: Tensor, unit: int, layout: PatchLayout, patch_size: int, tolerance: float
) -> list[np.ndarray | None]:
    """Of each patch, the sums of its unit's pixels per channel; `None` where the unit is not flat."""
    found: list[np.ndarray | None] = [None] * len(layout)
    statistics = {size: _statistics(exact, size, patch_size) for size in layout.patches_by_size if tolerance >= 0}
    for i, (row, col, size) in enumerate(layout.patches.tolist() if statistics else ()):
        totals, squares, values, area = statistics[size]
        side = max(size, MERGE_SIZE)
        total, square = totals[row // side][col // side], squares[row // side][col // side]
        limit = (tolerance * (area * unit)) * (tolerance * (area * unit)) * (values * values)
        if all(float(values * q - t * t) <= limit for t, q in zip(total, square, strict=True)):
            found[i] = np.array(total)
    return found


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


# -------------------------------------------------------------------- predictable


def _as_read(exact: Tensor, unit: int, layout: PatchLayout, patch_size: int) -> np.ndarray:
    """`(c, H, W)` uint8: the pixels, and coarse patches as their averages, in whole grey levels, halves upwards."""
    seen = torch.div(2 * exact + unit, 2 * unit, rounding_mode="floor")
    for row, col, size in layout.patches[layout.sizes > 1].tolist():
        top, left, side = row * patch_size, col * patch_size, size * patch_size
        here = (slice(None), slice(top, top + side), slice(left, left + side))
        sums = rearrange(exact[here], "c (y i) (x j) -> c y x (i j)", i=size, j=size).sum(-1)
        pixels = size * size * unit
        levels = torch.div(2 * sums + pixels, 2 * pixels, rounding_mode="floor")
        seen[here] = levels.repeat_interleave(size, 1).repeat_interleave(size, 2)
    return seen.clamp(0, 255).to(torch.uint8).numpy()


def _likely(seen: np.ndarray, row: int, col: int, side: int, patch_size: int, tolerance: float) -> np.ndarray | None:
    """What a unit is likely to repeat: the square on its left, or above; `None` for the first one."""
    left = seen[_pixels_of(row, col - side, side, patch_size)] if col else None
    above = seen[_pixels_of(row - side, col, side, patch_size)] if row else None
    if left is None or above is None:
        return above if left is None else left
    corner = seen[_pixels_of(row - side, col - side, side, patch_size)]
    return above if _apart(corner, left) <= tolerance < _apart(corner, above) else left


def _pixels_of(row: int, col: int, side: int, patch_size: int) -> tuple[slice, slice, slice]:
    """Where the pixels of a square of merge cells lie."""
    cell = patch_size * MERGE_SIZE
    return slice(None), slice(row * cell, (row + side) * cell), slice(col * cell, (col + side) * cell)


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    """How far two squares are apart where they are furthest apart, in grey levels."""
    return int(abs(one.astype(np.int16) - other).max())


# -------------------------------------------------------------------- the way


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
