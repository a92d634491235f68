"""The compiled form of `patch_packing`, over uint8 images on the CPU: one call per batch, one pass over what is kept.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches. Every sum is exact, so the results are
those of the plain code to the bit; tests hold the two equal.

Inner loops are functions of their own over one line of pixels: so the compiler sees that the arrays do not overlap and
turns them into vector code. A constant where a width is known lets it unroll them.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled

LARGEST_SIZE = 16
"""Packing adds up to 16 × 16 bytes in 16 bits."""


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
