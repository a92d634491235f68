"""The compiled form of `upsample_l4`, over uint8 images on the CPU: one call per batch and scale.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `rows cols` complete cells of one scale. Every sum is
exact, so the results are those of the plain code to the bit; tests hold the two equal.

Inner loops are functions of their own over one line of pixels, so that the compiler turns them into vector code.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


def fourth_powers_fit(channels: int, side: int, size: int) -> bool:
    """Whether no number of `upsample_fourths` overflows: the sum over a cell of `side` px in int64, the rest in int32.

    The largest of the rest is a white pixel in units of `1 / (4 size⁴)`, 2²² at 8×.
    """
    return size <= 8 and channels * side**2 * (255 * 16) ** 4 < 2**63


@compiled
def _add_area(line, size, area):  # type: ignore[no-untyped-def]
    for c in range(area.shape[0]):
        total = np.int32(0)
        for j in range(size):
            total += line[c * size + j]
        area[c] += total


@compiled
def _stretch(area, west, east, size, wide):  # type: ignore[no-untyped-def]
    """A coarse row as wide as the pixels, each blended from its own coarse pixel and the next one, in (2 size)ths."""
    for j in range(size):
        # the centre of fine column j lies (2 j + 1 − size) / (2 size) coarse columns from the centre of its own
        shift = 2 * j + 1 - size
        far = np.int32(abs(shift))
        near = np.int32(2 * size) - far
        beside = east if shift > 0 else west
        for c in range(area.shape[0]):
            wide[c * size + j] = near * area[c] + far * beside[c]


@compiled
def _subtract(line, own, beside, near, far, unit, errors):  # type: ignore[no-untyped-def]
    """One line's errors: `unit` of them are a grey level. Stored before more is done, which keeps them in 32 bits."""
    for x in range(line.shape[0]):
        errors[x] = np.int32(line[x]) * unit - near * own[x] - far * beside[x]


@compiled
def _add_fourths(errors, unit, fourths):  # type: ignore[no-untyped-def]
    """Fourth powers of the errors in sixteenths of a grey level, halves away from 0; in float32, which is exact."""
    scale = np.float32(16.0) / np.float32(unit)
    for x in range(errors.shape[0]):
        sixteenths = np.int32(np.float32(abs(errors[x])) * scale + np.float32(0.5))
        square = np.int64(sixteenths) * np.int64(sixteenths)
        fourths[x] += square * square


@compiled
def upsample_fourths(images, patch_size, size, per_unit, roots):  # type: ignore[no-untyped-def]
    """Root of the mean fourth power of what every complete cell loses to its own coarse patch scaled back up.

    Args:
        images: `(b, c, H, W)` uint8.
        patch_size: side of the coarse raster.
        size: 2, 4 or 8; the cell is `patch_size · size` pixels wide.
        per_unit: what one sixteenth of a grey level to the fourth, summed over a cell, is worth in the mean.
        roots: `(b, at least rows, at least cols)` float32, written, but for cells that stick out.
    """
    side = patch_size * size
    rows, cols = images.shape[2] // side, images.shape[3] // side
    width, coarse_width = cols * side, cols * patch_size
    area = np.empty((patch_size, coarse_width), np.int32)
    west, east = np.empty(coarse_width, np.int32), np.empty(coarse_width, np.int32)
    wide = np.empty((patch_size, width), np.int32)
    errors, fourths = np.empty(width, np.int32), np.empty(width, np.int64)
    unit = np.int32(4 * size**4)
    for image in range(images.shape[0]):
        for row in range(rows):
            fourths[:] = 0
            for channel in range(images.shape[1]):
                strip = images[image, channel, row * side : (row + 1) * side, :width]
                area[:] = 0
                for y in range(side):
                    if size == 2:  # a constant lets the compiler unroll
                        _add_area(strip[y], 2, area[y // 2])
                    elif size == 4:
                        _add_area(strip[y], 4, area[y // 4])
                    else:
                        _add_area(strip[y], size, area[y // size])
                for r in range(patch_size):
                    west[1:] = area[r, :-1]
                    east[:-1] = area[r, 1:]
                    # beyond the edge of a cell its outermost column stands in
                    for c in range(0, coarse_width, patch_size):
                        west[c], east[c + patch_size - 1] = area[r, c], area[r, c + patch_size - 1]
                    _stretch(area[r], west, east, size, wide[r])
                for y in range(side):
                    r, offset = y // size, 2 * (y % size) + 1 - size
                    far = np.int32(abs(offset))
                    beside = min(max(r + (1 if offset > 0 else -1), 0), patch_size - 1)
                    _subtract(strip[y], wide[r], wide[beside], np.int32(2 * size) - far, far, unit, errors)
                    _add_fourths(errors, unit, fourths)
            for col in range(cols):
                total = np.int64(0)
                for x in range(col * side, (col + 1) * side):
                    total += fourths[x]
                roots[image, row, col] = np.sqrt(np.float64(total) * per_unit)
