"""The compiled form of `dropping`, over uint8 images on the CPU; tests hold the two equal, to the bit.

Axis legend: `c` channels, `H W` pixels, `n` patches, `hm wm` merge cells.

First the colours of flat units, a kernel for each size with its widths as constants; then the walk, which reads no
pixel unless somebody wants to see them. Places in arrays are unsigned where it matters, so that the compiler need not
ask whether they count from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from apt_code.compilation import compiled, inlined

KNOWN_PATCH_SIZES = (14, 16)
"""Those of the families, in pixels: they get a kernel of their own, all others share one."""

U = np.uintp


def keep_unlike(
    image: np.ndarray,
    patches: np.ndarray,
    patch_size: int,
    flat: float,
    predict: float,
    stays: np.ndarray,
    seen: np.ndarray,
) -> None:
    """Say of each patch whether it stays, and what is left of the picture.

    Args:
        image: `(c, H, W)` uint8, contiguous.
        patches: `(n, 3)` int64 `(row, col, size)` of one tiling, in canonical order.
        patch_size: as `dropping.drop_repeats`.
        flat, predict: tolerances; a rule with a negative one is off.
        stays: `(n,)` bool, all true, written.
        seen: `(c, H, W)` uint8, a copy of the image, written; `(c, 0, 0)` if nobody asks, then `predict` is off.
    """
    known = patch_size if patch_size in KNOWN_PATCH_SIZES else 0
    sums = np.full((len(patches), len(image)), -1, np.int64)
    sizes = int(np.bitwise_or.reduce(patches[:, 2]))  # each is a bit
    for size in (1 << scale for scale in range(sizes.bit_length()) if flat >= 0 and sizes >> scale & 1):
        _flat_kernel(known, size)(image, patches, patch_size, flat, sums)
    cells = (image.shape[1] // (2 * patch_size), image.shape[2] // (2 * patch_size))
    walk_units(image, cells, patches, sizes, sums, patch_size, flat, predict, stays, seen)


def walk_units(
    image: np.ndarray,
    cells: tuple[int, int],
    patches: np.ndarray,
    sizes: int,
    sums: np.ndarray,
    patch_size: int,
    flat: float,
    predict: float,
    stays: np.ndarray,
    seen: np.ndarray,
) -> None:
    """The walk alone, where the sums are known already.

    Args:
        image: as `keep_unlike`; nothing but its channels is read where nobody wants to see.
        cells: `(hm, wm)`.
        sizes: of the patches, each a bit.
        sums: `(n, c)` int64, over the pixels of flat units; a first one of −1 stands for a unit that is not flat.
        patches, patch_size, flat, predict, stays, seen: as `keep_unlike`.
    """
    units = np.full(cells, -1, np.int64)
    roots = np.empty((*cells, len(image)), np.int64)  # sums over `pixels` pixels, so that all is exact
    pixels = np.zeros(cells, np.int64)  # 0 where a cell is not flat
    coarsest = max(1, (1 << sizes.bit_length()) // 4)  # in merge cells
    walk = _walk_kernel(seen.size > 0)
    walk(image, patches, sums, patch_size, coarsest, flat, predict, stays, seen, units, roots, pixels)


@inlined
def _add_line(plane, top, left, width, size):  # type: ignore[no-untyped-def]
    """Sum and sum of squares over a line of a raster: each value is the sum of `size × size` pixels."""
    total, square = np.int64(0), np.int64(0)
    for x in range(U(width)):
        value = np.int32(0)
        for j in range(U(size)):
            for k in range(U(size)):
                value += plane[top + j, left + x * U(size) + k]
        total += value
        square += np.int64(value) * np.int64(value)
    return total, square


@lru_cache(maxsize=32)
def _flat_kernel(known_patch_size: int, size: int) -> Callable[..., Any]:
    """The kernel for units of one size: whole patches, or, with 1, split merge cells."""

    @compiled
    def add_flat(image, patches, given_size, tolerance, sums):  # type: ignore[no-untyped-def]
        """Write the sums over the rasters of flat units; a first one of −1 stands for a unit that is not flat."""
        p = known_patch_size if known_patch_size else given_size
        width = 2 * p if size == 1 else p  # of the raster
        area = size * size
        limit = (tolerance * area) * (tolerance * area)
        for i in range(patches.shape[0]):
            row, col = patches[i, 0], patches[i, 1]
            if patches[i, 2] != size or (size == 1 and (row % 2 or col % 2)):
                continue
            top, left, flat = U(row * p), U(col * p), True
            for channel in range(image.shape[0]):
                plane = image[channel]
                total, square, values = np.int64(0), np.int64(0), 0
                for y in range(U(width)):
                    more, more_square = _add_line(plane, top + y * U(size), left, width, size)
                    total += more
                    square += more_square
                    values += width
                    # Squared differences from the mean only grow from line to line: what is too far apart is so after
                    # a few. By a little more than the limit, because it is rounded; the last line decides.
                    apart = np.float64(values * square - total * total)
                    if apart > limit * (1.000001 * values) * (width * width):
                        flat = False
                        break
                if not flat or apart > limit * (values * values):
                    flat = False
                    break
                sums[i, channel] = total
            if not flat:
                sums[i, 0] = -1

    return add_flat


@lru_cache(maxsize=2)
def _walk_kernel(sees: bool) -> Callable[..., Any]:
    """The kernel for the walk, with three arrays to work in; `sees` where `seen` is there."""

    @compiled
    def walk(image, patches, sums, patch_size, coarsest, flat, predict, stays, seen, units, roots, pixels):  # type: ignore[no-untyped-def]
        if sees:
            _average(image, patches, patch_size, seen)
        rows, cols = units.shape
        for i in range(patches.shape[0]):
            if patches[i, 0] % 2 == 0 and patches[i, 1] % 2 == 0:
                units[patches[i, 0] // 2, patches[i, 1] // 2] = i
        bits = 0
        while coarsest >> bits:
            bits += 1
        for top in range(0, rows, coarsest):
            for left in range(0, cols, coarsest):
                for place in range(coarsest * coarsest):
                    row, col = top, left
                    for bit in range(bits):
                        col += (place >> 2 * bit & 1) << bit
                        row += (place >> (2 * bit + 1) & 1) << bit
                    if row >= rows or col >= cols or units[row, col] < 0:
                        continue
                    first = units[row, col]
                    size = patches[first, 2]
                    side = max(1, size // 2)  # of the unit, in merge cells
                    px = side * 2 * patch_size
                    root, count, dropped = sums[first], px * px, False
                    if root[0] >= 0:
                        r, c = _root_beside(roots, pixels, row, col, side, flat, root, count)
                        if r >= 0:
                            root, count, dropped = roots[r, c], pixels[r, c], True
                        for y in range(row, row + side):
                            for x in range(col, col + side):
                                pixels[y, x] = count
                                for channel in range(image.shape[0]):
                                    roots[y, x, channel] = root[channel]
                    if sees:
                        down, right = row * 2 * patch_size, col * 2 * patch_size
                        if dropped:
                            for channel in range(image.shape[0]):
                                level = (2 * root[channel] + count) // (2 * count)
                                seen[channel, down : down + px, right : right + px] = level
                        elif predict >= 0 and _repeat_likely(seen, down, right, px, predict):
                            dropped = True
                            pixels[row : row + side, col : col + side] = 0  # no colour to hand on
                    if dropped:
                        for k in range(first, first + (4 if size == 1 else 1)):
                            stays[k] = False

    return walk


@compiled
def _root_beside(roots, pixels, row, col, side, tolerance, root, count):  # type: ignore[no-untyped-def]
    """The merge cell on the left of a flat unit, or above, whose root it inherits; `(-1, -1)` if there is none."""
    for above in (False, True):
        if (row if above else col) == 0:
            continue
        alike = True
        for i in range(side):
            r, c = (row - 1, col + i) if above else (row + i, col - 1)
            alike = alike and pixels[r, c] > 0
            for channel in range(root.shape[0] if alike else 0):
                difference = abs(root[channel] * pixels[r, c] - roots[r, c, channel] * count)
                alike = alike and difference <= tolerance * (count * pixels[r, c])
        if alike:
            return (row - 1, col) if above else (row, col - 1)
    return -1, -1


@compiled
def _average(image, patches, patch_size, seen):  # type: ignore[no-untyped-def]
    """Write the averages of coarse patches over their pixels, in whole grey levels, halves upwards."""
    for i in range(patches.shape[0]):
        size = patches[i, 2]
        if size == 1:
            continue
        top, left, side, area = patches[i, 0] * patch_size, patches[i, 1] * patch_size, size * patch_size, size * size
        for channel in range(image.shape[0]):
            for y in range(top, top + side, size):
                for x in range(left, left + side, size):
                    total = np.int64(0)
                    for j in range(size):
                        for k in range(size):
                            total += image[channel, y + j, x + k]
                    level = (2 * total + area) // (2 * area)
                    for j in range(size):
                        for k in range(size):
                            seen[channel, y + j, x + k] = level


@compiled
def _alike(seen, row, col, other_row, other_col, side, most):  # type: ignore[no-untyped-def]
    """Whether no pixel of two squares differs by more than `most`; the first line with one that does ends it."""
    for channel in range(seen.shape[0]):
        for y in range(side):
            one = seen[channel, row + y, col : col + side]
            other = seen[channel, other_row + y, other_col : other_col + side]
            apart = np.int32(0)
            for x in range(side):
                apart = max(apart, abs(np.int32(one[x]) - np.int32(other[x])))
            if apart > most:
                return False
    return True


@compiled
def _repeat_likely(seen, row, col, side, most):  # type: ignore[no-untyped-def]
    """Whether a square of pixels repeats the one that it is likely to, on its left or above; then it becomes equal."""
    if row == 0 and col == 0:
        return False
    from_row, from_col = row, col - side
    if col == 0 or (
        row > 0
        and _alike(seen, row - side, col - side, row, col - side, side, most)
        and not _alike(seen, row - side, col - side, row - side, col, side, most)
    ):
        from_row, from_col = row - side, col
    if not _alike(seen, row, col, from_row, from_col, side, most):
        return False
    for channel in range(seen.shape[0]):
        for y in range(side):
            for x in range(side):
                seen[channel, row + y, col + x] = seen[channel, from_row + y, from_col + x]
    return True
