"""Compiled importance maps and packing of uint8 images on the CPU: one call per batch, one pass over its pixels.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `rows cols` complete cells of one scale, `n` patches.
Every sum is exact, so the results are those of the plain code in `entropy_utils` and `patch_packing` to the bit; tests
hold the two equal. Compiled functions are cached on disk, by `kernel_cache`. Without numba, the plain code does the
work, more slowly.

Inner loops are functions of their own over one line of pixels: so the compiler sees that the arrays do not overlap and
turns them into vector code. A constant where a width is known lets it unroll them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from loguru import logger
from numba import config, njit

GREY_RANGE = np.uint32(255 * 10_000)
MOST_BINS = 2**32 // (255 * 10_000)
"""Grey level times bins is counted in 32 bits."""
MOST_PIXELS = 2**16 - 1
"""Histograms count a cell's pixels in 16 bits."""
LARGEST_SIZE = 16
"""Packing adds up to 16 × 16 bytes in 16 bits."""
INTERPRETED = bool(config.DISABLE_JIT)
"""With NUMBA_DISABLE_JIT numba hands functions back as they are, which takes ten times as long as the plain code."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, and keep the result on disk where there is a place for it."""
    kernel: Any = njit(nogil=True, error_model="numpy")(function)
    if INTERPRETED:
        return kernel
    try:
        from apt_code.kernel_cache import KernelCache

        kernel._cache = KernelCache(function)  # what `njit(cache=True)` does, with a cache that never raises
    except Exception as error:  # a read-only installation and no home directory: compile once per process instead
        logger.debug("{} is compiled by every process, there is no place to save it: {!r}", function.__name__, error)
    return kernel


# -------------------------------------------------------------------- entropy


@compiled
def _bins_of_line(red, green, blue, weights, bins, line):  # type: ignore[no-untyped-def]
    """The histogram bin of every pixel of a line."""
    for x in range(line.shape[0]):
        grey = np.uint32(weights[0] * red[x] + weights[1] * green[x] + weights[2] * blue[x])
        line[x] = min(grey // GREY_RANGE, np.uint32(bins - 1))


@compiled
def entropies(images, patch_size, bins, weights, table, units, maps):  # type: ignore[no-untyped-def]
    """The entropy of every complete cell, `(table[N] − Σ table[count]) · unit` over its grey-level histogram.

    Goes from one cell of the coarsest scale to the next, so that its histograms stay in the fastest cache, and looks
    only at the bins between a cell's darkest and brightest pixel.

    Args:
        images: `(b, 3, H, W)` uint8.
        patch_size, bins: as `compute_patch_entropy_batched`; at most `MOST_BINS`, and a coarsest cell of at most
            `MOST_PIXELS`.
        weights: `(3,)` int64, grey weights in ten-thousandths times `bins`.
        table: `(largest count + 1,)` int64, `c log2 c` in fixed point.
        units: `(num_scales,)` float64, what one of it is worth in bits.
        maps: tuple of `(b, at least rows, at least cols)` float32, finest first, written, but for cells that
            stick out.
    """
    rows, cols = images.shape[2] // patch_size, images.shape[3] // patch_size
    num_scales = len(maps)
    wholes = np.array([table[(patch_size << scale) ** 2] for scale in range(num_scales)])
    across = 2 ** (num_scales - 1)  # base cells along a side of the coarsest cell
    strip = np.empty((across * patch_size, cols * patch_size), np.uint16)
    counts = np.zeros((num_scales, across, across, bins), np.uint16)
    darkest = np.empty((across, across), np.uint16)
    brightest = np.empty((across, across), np.uint16)
    for image in range(images.shape[0]):
        for top in range(0, rows, across):
            tall = min(across, rows - top)
            for y in range(tall * patch_size):
                lines = images[image, :, top * patch_size + y, : cols * patch_size]
                _bins_of_line(lines[0], lines[1], lines[2], weights, bins, strip[y])
            for left in range(0, cols, across):
                wide = min(across, cols - left)
                for r in range(tall):
                    for c in range(wide):
                        histogram = counts[0, r, c]
                        low, high = np.uint16(bins - 1), np.uint16(0)
                        for y in range(r * patch_size, (r + 1) * patch_size):
                            line = strip[y, (left + c) * patch_size : (left + c + 1) * patch_size]
                            for x in range(patch_size):
                                low, high = min(low, line[x]), max(high, line[x])
                            for x in range(patch_size):
                                histogram[line[x]] += np.uint16(1)
                        darkest[r, c], brightest[r, c] = low, high
                        total = np.int64(0)
                        for b in range(low, high + 1):
                            total += table[histogram[b]]
                        maps[0][image, top + r, left + c] = (wholes[0] - total) * units[0]
                for scale in range(1, num_scales):
                    finer = counts[scale - 1]
                    for r in range(tall >> scale):
                        for c in range(wide >> scale):
                            histogram = counts[scale, r, c]
                            low = darkest[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].min()
                            high = brightest[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max()
                            upper, lower = finer[2 * r], finer[2 * r + 1]
                            for b in range(low, high + 1):
                                histogram[b] = (
                                    upper[2 * c, b] + upper[2 * c + 1, b] + lower[2 * c, b] + lower[2 * c + 1, b]
                                )
                            darkest[r, c], brightest[r, c] = low, high  # its children are read already
                            total = np.int64(0)
                            for b in range(low, high + 1):
                                total += table[histogram[b]]
                            missing = wholes[scale] - total
                            maps[scale][image, (top >> scale) + r, (left >> scale) + c] = missing * units[scale]
                counts[:] = 0


# -------------------------------------------------------------------- reconstruction error


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


# -------------------------------------------------------------------- packing


@compiled
def _add_rows(pixels, top, left, size, wide, sums):  # type: ignore[no-untyped-def]
    """Add up each `size` pixel rows of a patch that is `wide` pixels wide."""
    for y in range(sums.shape[0] // wide):
        line = sums[y * wide : (y + 1) * wide]
        row = pixels[top + y * size, left : left + wide]
        for x in range(wide):
            line[x] = row[x]
        for i in range(1, size):
            row = pixels[top + y * size + i, left : left + wide]
            for x in range(wide):
                line[x] += np.uint16(row[x])


@compiled
def _look_up(sums, table, values):  # type: ignore[no-untyped-def]
    for x in range(values.shape[0]):
        values[x] = table[sums[x]]


@compiled
def _copy(values, row):  # type: ignore[no-untyped-def]
    for x in range(values.shape[0]):
        row[x] = values[x]


@compiled
def _scale(sums, per_pixel, mean, std, values):  # type: ignore[no-untyped-def]
    for x in range(values.shape[0]):
        values[x] = (np.float32(sums[x]) * per_pixel - mean) / std


@compiled
def _scale_patch(pixels, top, left, side, mean, std, values):  # type: ignore[no-untyped-def]
    """`_scale` of a patch of the finest size, straight from its pixels."""
    for y in range(side):
        row, line = pixels[top + y, left : left + side], values[y * side : (y + 1) * side]
        for x in range(side):
            line[x] = (np.float32(row[x]) - mean) / std


@compiled
def gather_rows(images, patches, ends, places, tables, starts, means, stds, patch_size, frames, rows):  # type: ignore[no-untyped-def]
    """Finish every pixel of the kept patches: as `(pixel − mean) / std`, or by looking it up.

    Args:
        images: `(b, c, H, W)` uint8.
        patches: `(n, 3)` int64 `(row, col, size)`, of all images one after the other.
        ends: `(b,)` int64, where each image's patches end.
        places: `(b,)` int64, where each image's rows begin.
        tables: `(c, entries)` float32: for each size, the value of a sum of `size²` pixels. Not used with means.
        starts: `(largest size + 1,)` int64: where a size's values start in the tables, −1 for what is no size.
        means, stds: `(c,)` float32, or both empty to look up instead.
        patch_size, frames: side of the raster, and how often each is repeated.
        rows: `(at least n, c·frames·patch_size²)` float32, written.

    Returns:
        The index of the first patch that does not lie wholly inside its image, where it stopped; −1 for none.
    """
    height, width = images.shape[2] // patch_size, images.shape[3] // patch_size
    area = patch_size * patch_size
    buffer = np.empty(area * (len(starts) - 1), np.uint16)
    image, place = 0, places[0]
    for i in range(patches.shape[0]):
        while i >= ends[image]:
            image += 1
            place = places[image]
        row, col, size = patches[i, 0], patches[i, 1], patches[i, 2]
        if size < 1 or size >= len(starts) or starts[size] < 0:
            return i
        if row < 0 or row > height - size or col < 0 or col > width - size:
            return i
        top, left, wide = row * patch_size, col * patch_size, size * patch_size
        sums = buffer[: patch_size * wide]
        for channel in range(images.shape[1]):
            pixels, begin = images[image, channel], channel * frames * area
            values = rows[place, begin : begin + area]
            if size == 1 and len(means) > 0:
                if patch_size == 14:
                    _scale_patch(pixels, top, left, 14, means[channel], stds[channel], values)
                else:
                    _scale_patch(pixels, top, left, patch_size, means[channel], stds[channel], values)
            else:
                if wide == 14:
                    _add_rows(pixels, top, left, 1, 14, sums)
                elif wide == 28 and size == 2:
                    _add_rows(pixels, top, left, 2, 28, sums)
                elif wide == 56 and size == 4:
                    _add_rows(pixels, top, left, 4, 56, sums)
                else:
                    _add_rows(pixels, top, left, size, wide, sums)
                left_over = patch_size * wide
                while left_over > area:  # then along the rows: pairs never straddle two of them
                    left_over //= 2
                    for x in range(left_over):
                        sums[x] = sums[2 * x] + sums[2 * x + 1]
                if len(means) > 0:
                    _scale(sums, np.float32(1.0 / (size * size)), means[channel], stds[channel], values)
                else:
                    _look_up(sums, tables[channel, starts[size] :], values)
            for frame in range(1, frames):
                _copy(values, rows[place, begin + frame * area : begin + (frame + 1) * area])
        place += 1
    return -1
