"""Compiled importance maps and packing of uint8 images on the CPU, in one pass over the pixels each.

Axis legend: `c` channels, `H W` pixels, `rows cols` complete cells of one scale. Every sum is exact, so the results
are those of the plain code in `entropy_utils` and `patch_packing` to the bit; tests hold the two equal. Compiled
functions are cached on disk. Without numba, the plain code does the work, more slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

GREY_RANGE = 255 * 10_000


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, and keep the result on disk where there is a place for it."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation and no home directory: compile once per process instead
        return njit(nogil=True)(function)


@_compiled
def entropy_sums(image, patch_size, num_scales, bins, weights, table, deltas):  # type: ignore[no-untyped-def]
    """`Σ table[count]` over the grey-level histogram of every complete cell.

    Args:
        image: `(3, H, W)` uint8.
        patch_size, num_scales, bins: as `compute_patch_entropy_batched`.
        weights: `(3,)` int64 grey weights in ten-thousandths.
        table: `(largest count + 1,)` int64, `c log2 c` in fixed point.
        deltas: `table[1:] - table[:-1]`.

    Returns:
        `(num_scales, H // patch_size, W // patch_size)` int64; scale i fills the first `rows, cols` of its own grid.
    """
    height, width = image.shape[1], image.shape[2]
    rows, cols = height // patch_size, width // patch_size
    sums = np.zeros((num_scales, rows, cols), np.int64)
    strip = 2 ** (num_scales - 1)  # rows of base cells that make up one row of the coarsest cells
    counts = np.zeros((strip, cols, bins), np.int32)
    line = np.zeros(cols * patch_size, np.int32)
    red, green, blue = weights[0] * bins, weights[1] * bins, weights[2] * bins
    for top in range(0, rows, strip):
        here = min(strip, rows - top)
        counts[:] = 0
        for r in range(here):
            for y in range((top + r) * patch_size, (top + r + 1) * patch_size):
                for x in range(cols * patch_size):
                    grey = red * image[0, y, x] + green * image[1, y, x] + blue * image[2, y, x]
                    line[x] = min(grey // GREY_RANGE, bins - 1)
                for c in range(cols):
                    total = 0
                    histogram = counts[r, c]
                    for x in range(c * patch_size, (c + 1) * patch_size):
                        count = histogram[line[x]]
                        total += deltas[count]
                        histogram[line[x]] = count + 1
                    sums[0, top + r, c] += total
        # coarser cells: add up four histograms in place, then one look-up per bin
        across = cols
        for scale in range(1, num_scales):
            here, across = here // 2, across // 2
            for r in range(here):
                for c in range(across):
                    total = 0
                    for b in range(bins):
                        count = (
                            counts[2 * r, 2 * c, b]
                            + counts[2 * r, 2 * c + 1, b]
                            + counts[2 * r + 1, 2 * c, b]
                            + counts[2 * r + 1, 2 * c + 1, b]
                        )
                        counts[r, c, b] = count
                        total += table[count]
                    sums[scale, (top >> scale) + r, c] = total
    return sums


@_compiled
def upsample_square_error(image, patch_size, size):  # type: ignore[no-untyped-def]
    """Sum of squared errors between every complete cell and its own coarse patch scaled back up.

    Pixels are counted in units of `1 / (4 size⁴)` grey levels, in which an area average (over size²) blended twice
    (over 2 size) is an integer below 2²⁴: float32 holds it exactly, float64 a column of its squares, int64 a cell.

    Args:
        image: `(c, H, W)` uint8.
        patch_size: side of the coarse raster.
        size: 2, 4 or 8; the cell is `patch_size · size` pixels wide.

    Returns:
        `(rows, cols)` int64, in those units squared.
    """
    channels, height, width = image.shape
    side = patch_size * size
    rows, cols = height // side, width // side
    coarse_width = cols * patch_size
    errors = np.zeros((rows, cols), np.int64)
    unit = np.float32(4 * size**4)
    sums = np.empty((patch_size, coarse_width), np.float32)
    columns = np.empty(cols * side, np.int32)
    blend = np.empty(coarse_width, np.float32)
    restored = np.empty(cols * side, np.float32)
    squares = np.empty(cols * side, np.float64)
    for row in range(rows):
        squares[:] = 0.0
        for channel in range(channels):
            for r in range(patch_size):
                columns[:] = 0
                for y in range(row * side + r * size, row * side + (r + 1) * size):
                    for x in range(cols * side):
                        columns[x] += image[channel, y, x]
                for c in range(coarse_width):
                    total = 0
                    for x in range(c * size, (c + 1) * size):
                        total += columns[x]
                    sums[r, c] = total
            for r in range(patch_size):
                for i in range(size):
                    # the centre of fine row i lies (2 i + 1 − size) / (2 size) coarse rows from the centre of row r
                    shift = 2 * i + 1 - size
                    other = min(max(r + (1 if shift > 0 else -1), 0), patch_size - 1)
                    far = np.float32(abs(shift))
                    near = np.float32(2 * size) - far
                    for c in range(coarse_width):
                        blend[c] = near * sums[r, c] + far * sums[other, c]
                    for j in range(size):
                        shift = 2 * j + 1 - size
                        step = 1 if shift > 0 else -1
                        beside = np.float32(abs(shift))
                        own = np.float32(2 * size) - beside
                        for c in range(0 if step > 0 else 1, coarse_width - 1 if step > 0 else coarse_width):
                            restored[c * size + j] = own * blend[c] + beside * blend[c + step]
                        # the outermost column of a cell has no neighbour on that side: it stands in for it
                        for c in range(patch_size - 1 if step > 0 else 0, coarse_width, patch_size):
                            restored[c * size + j] = (own + beside) * blend[c]
                    y = row * side + r * size + i
                    for x in range(cols * side):
                        error = unit * np.float32(image[channel, y, x]) - restored[x]
                        squares[x] += np.float64(error) * np.float64(error)
        for col in range(cols):
            total_square = np.int64(0)
            for x in range(col * side, (col + 1) * side):
                total_square += np.int64(squares[x])
            errors[row, col] = total_square
    return errors


@_compiled
def gather_rows(image, patches, tables, starts, patch_size, frames, rows):  # type: ignore[no-untyped-def]
    """Look up every pixel of the kept patches in a table of finished values.

    Args:
        image: `(c, H, W)` uint8.
        patches: `(n, 3)` int64 `(row, col, size)`, wholly inside the image.
        tables: `(c, entries)` float32: for each size, the value of a sum of `size²` pixels.
        starts: `(largest size + 1,)` int64: where a size's values start in the tables.
        patch_size, frames: side of the raster, and how often each is repeated.
        rows: `(n, c·frames·patch_size²)` float32, written.
    """
    channels = image.shape[0]
    area = patch_size * patch_size
    line = np.empty(patch_size * (len(starts) - 1), np.int32)
    for i in range(patches.shape[0]):
        size = patches[i, 2]
        start = starts[size]
        left = patches[i, 1] * patch_size
        for channel in range(channels):
            base = channel * frames * area
            for y in range(patch_size):
                top = patches[i, 0] * patch_size + y * size
                out = base + y * patch_size
                if size == 1:
                    for x in range(patch_size):
                        rows[i, out + x] = tables[channel, start + image[channel, top, left + x]]
                    continue
                # add up the pixel rows first: that loop runs along memory
                line[: patch_size * size] = 0
                for a in range(size):
                    for x in range(patch_size * size):
                        line[x] += image[channel, top + a, left + x]
                for x in range(patch_size):
                    total = 0
                    for b in range(size):
                        total += line[x * size + b]
                    rows[i, out + x] = tables[channel, start + total]
            for frame in range(1, frames):
                rows[i, base + frame * area : base + (frame + 1) * area] = rows[i, base : base + area]
