"""The compiled form of `upsample_mse`, over uint8 images on the CPU: one call per batch and scale.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `rows cols` complete cells of one scale. Every sum is
exact, so the results are those of the plain code to the bit; tests hold the two equal.

Inner loops are functions of their own over one line of pixels: so the compiler sees that the arrays do not overlap and
turns them into vector code. A constant where a width is known lets it unroll them.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


def upsample_errors_fit(channels: int, side: int, size: int) -> bool:
    """Whether no sum of `upsample_errors` over a cell of `side` px overflows; at 8× up to 37-px patches in colour.

    The largest numbers: `|x|²` of a white cell in units of `1 / (4 size⁴)²`, and twice that on the way, in int64; and
    the squares of one column of pixels in int32. All others have the same size whatever the patch: at most 2²⁵ at 8×.
    """
    white, unit = channels * 255**2 * side, 4 * size**4
    return size <= 8 and white < 2**31 and 2 * white * side * unit**2 < 2**63


@compiled
def _add_line(line, near, far, squares, area, own, beside):  # type: ignore[no-untyped-def]
    """One line of pixels: its squares, its share of the area sums, and of the two coarse rows it is blended from."""
    for x in range(line.shape[0]):
        pixel = np.int32(line[x])
        squares[x] += pixel * pixel
        area[x] += pixel
        own[x] += near * pixel
        beside[x] += far * pixel


@compiled
def _add_across(area, blend, size, average, own, west, east):  # type: ignore[no-untyped-def]
    """The same along the line, `(coarse width · size,)` -> `(coarse width,)`; neighbours' shares are kept apart."""
    for c in range(average.shape[0]):
        total, near_sum, west_sum, east_sum = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
        for j in range(size // 2):
            first, last = c * size + j, c * size + size - 1 - j
            far = np.int32(size - 1 - 2 * j)
            near = np.int32(2 * size) - far
            total += area[first] + area[last]
            near_sum += near * (blend[first] + blend[last])
            west_sum += far * blend[first]
            east_sum += far * blend[last]
        average[c], own[c], west[c], east[c] = total, near_sum, west_sum, east_sum


@compiled
def _add_errors(errors, a, west_a, east_a, vertical, own, west, east, unit, itself, next_one):  # type: ignore[no-untyped-def]
    """`|U a|² − 2 · unit · <x, U a>` of one coarse row, added per column; see `upsample_errors`."""
    for c in range(errors.shape[0]):
        overlap = itself * a[c] + next_one * (west_a[c] + east_a[c])
        product = np.int64(own[c]) * a[c] + np.int64(west[c]) * west_a[c] + np.int64(east[c]) * east_a[c]
        errors[c] += np.int64(vertical[c]) * overlap - 2 * unit * product


@compiled
def upsample_errors(images, patch_size, size, per_unit, errors):  # type: ignore[no-untyped-def]
    """Mean squared error between every complete cell and its own coarse patch scaled back up.

    With `x` the cell's pixels, `a` the sums of its size × size blocks and `U` the scaling up, the error is
    `|x|² − 2 <x, U a> + |U a|²`, where `<x, U a> = <Uᵀ x, a>` and `|U a|² = <a, UᵀU a>`: nothing is ever scaled up.
    `Uᵀ x` is a weighted pooling like `a` itself, `UᵀU` joins neighbours only, and the rest runs on the coarse raster.
    All of it is in integers: `U` blends a coarse pixel and its neighbour in (2 size)ths along each side, so pixels
    count in units of `1 / (4 size⁴)` grey levels.

    Args:
        images: `(b, c, H, W)` uint8.
        patch_size: side of the coarse raster.
        size: 2, 4 or 8; the cell is `patch_size · size` pixels wide.
        per_unit: what one of those units squared, summed over a cell, is worth in the mean.
        errors: `(b, at least rows, at least cols)` float32, written, but for cells that stick out.
    """
    side = patch_size * size
    rows, cols = images.shape[2] // side, images.shape[3] // side
    width, coarse_width = cols * side, cols * patch_size
    squares, columns = np.empty(width, np.int32), np.empty(coarse_width, np.int64)
    area, blend = np.empty((patch_size, width), np.int32), np.empty((patch_size + 2, width), np.int32)
    a, own = np.empty((patch_size, coarse_width), np.int32), np.empty((patch_size, coarse_width), np.int32)
    west, east = np.empty((patch_size, coarse_width), np.int32), np.empty((patch_size, coarse_width), np.int32)
    west_a, east_a = np.empty(coarse_width, np.int32), np.empty(coarse_width, np.int32)
    vertical = np.empty(coarse_width, np.int32)
    unit = np.int64(4 * size**4)
    # UᵀU along one side: how much a coarse pixel's share of the fine ones overlaps with itself and with the next one
    overlaps = np.zeros(2, np.int32)
    for j in range(1, size, 2):
        overlaps[0] += 2 * ((2 * size - j) ** 2 + j**2)
        overlaps[1] += 2 * (2 * size - j) * j
    itself, next_one = overlaps[0], overlaps[1]
    for image in range(images.shape[0]):
        for row in range(rows):
            squares[:], columns[:] = 0, 0
            for channel in range(images.shape[1]):
                area[:], blend[:] = 0, 0
                for y in range(side):
                    # the centre of fine row i lies (2 i + 1 − size) / (2 size) coarse rows from the centre of its own
                    r, shift = y // size, 2 * (y % size) + 1 - size
                    far, line = np.int32(abs(shift)), images[image, channel, row * side + y, :width]
                    beside = blend[r + 2 if shift > 0 else r]
                    _add_line(line, np.int32(2 * size) - far, far, squares, area[r], blend[r + 1], beside)
                # beyond the edge of a cell its outermost row stands in
                blend[1] += blend[0]
                blend[patch_size] += blend[patch_size + 1]
                for r in range(patch_size):
                    if size == 2:
                        _add_across(area[r], blend[r + 1], 2, a[r], own[r], west[r], east[r])
                    elif size == 4:
                        _add_across(area[r], blend[r + 1], 4, a[r], own[r], west[r], east[r])
                    else:
                        _add_across(area[r], blend[r + 1], size, a[r], own[r], west[r], east[r])
                for r in range(patch_size):
                    above, below = a[max(r - 1, 0)], a[min(r + 1, patch_size - 1)]
                    for c in range(coarse_width):
                        vertical[c] = itself * a[r, c] + next_one * (above[c] + below[c])
                    west_a[1:] = a[r, :-1]
                    east_a[:-1] = a[r, 1:]
                    for c in range(0, coarse_width, patch_size):
                        west_a[c], east_a[c + patch_size - 1] = a[r, c], a[r, c + patch_size - 1]
                    _add_errors(
                        columns, a[r], west_a, east_a, vertical, own[r], west[r], east[r], unit, itself, next_one
                    )
            for col in range(cols):
                square = np.int64(0)
                for x in range(col * side, (col + 1) * side):
                    square += squares[x]
                total = unit * unit * square
                for c in range(col * patch_size, (col + 1) * patch_size):
                    total += columns[c]
                errors[image, row, col] = np.float64(total) * per_unit
