"""The compiled form of `dropping`, over uint8 images on the CPU; tests hold the two equal, to the bit.

Axis legend: `c` channels, `H W` pixels, `n` patches, `hm wm` merge cells.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


@compiled
def _add_raster(pixels, top, left, side, size):  # type: ignore[no-untyped-def]
    """Sum and sum of squares over the raster of a cell: each of its values is the sum of `size × size` pixels."""
    total, square = np.int64(0), np.int64(0)
    line = np.empty(side // size, np.int64)
    for y in range(0, side, size):
        line[:] = 0
        for i in range(size):
            row = pixels[top + y + i, left : left + side]
            for x in range(line.shape[0]):
                for j in range(size):
                    line[x] += row[x * size + j]
        for x in range(line.shape[0]):
            total += line[x]
            square += line[x] * line[x]
    return total, square


@compiled
def keep_unlike(image, patches, tolerance, patch_size, stays, roots, pixels):  # type: ignore[no-untyped-def]
    """Say of each patch whether it stays, and of each merge cell what its root colour is.

    Args:
        image: `(c, H, W)` uint8.
        patches: `(n, 3)` int64 `(row, col, size)` of one tiling, in canonical order.
        tolerance, patch_size: as `dropping.drop_flat`.
        stays: `(n,)` bool, all true, written.
        roots: `(hm, wm, c)` int64, all 0, written: sums over `pixels` pixels, so that comparing them is exact.
        pixels: `(hm, wm)` int64, all 0, written; 0 stays where a cell is not flat.
    """
    channels = image.shape[0]
    rows, cols = image.shape[1] // (2 * patch_size), image.shape[2] // (2 * patch_size)
    units = np.full((rows, cols), -1, np.int64)
    coarsest = 1
    for i in range(patches.shape[0]):
        if patches[i, 0] % 2 == 0 and patches[i, 1] % 2 == 0:
            units[patches[i, 0] // 2, patches[i, 1] // 2] = i
        coarsest = max(coarsest, patches[i, 2] // 2)
    bits = 0
    while coarsest >> bits:
        bits += 1
    root = np.empty(channels, np.int64)
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
                values, area = (max(size, 2) // size * patch_size) ** 2, size * size
                limit = (tolerance * area) * (tolerance * area) * (values * values)
                even = True
                for channel in range(channels):
                    total, square = _add_raster(
                        image[channel], row * 2 * patch_size, col * 2 * patch_size, max(size, 2) * patch_size, size
                    )
                    if np.float64(values * square - total * total) > limit:
                        even = False
                        break
                    root[channel] = total
                if not even:
                    continue
                count = values * area
                for beside in range(2):  # on the left, then above
                    above = beside == 1
                    if (row if above else col) == 0:
                        continue
                    alike = True
                    for i in range(side):
                        r, c = (row - 1, col + i) if above else (row + i, col - 1)
                        alike = alike and pixels[r, c] > 0
                        for channel in range(channels):
                            difference = abs(root[channel] * pixels[r, c] - roots[r, c, channel] * count)
                            alike = alike and difference <= tolerance * (count * pixels[r, c])
                    if alike:
                        for i in range(first, first + (4 if size == 1 else 1)):
                            stays[i] = False
                        r, c = (row - 1, col) if above else (row, col - 1)
                        root[:], count = roots[r, c], pixels[r, c]
                        break
                pixels[row : row + side, col : col + side] = count
                for channel in range(channels):
                    roots[row : row + side, col : col + side, channel] = root[channel]
