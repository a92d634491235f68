"""The compiled form of `dropping`, over uint8 images on the CPU; tests hold the two equal, to the bit.

Axis legend: `c` channels, `H W` pixels, `n` patches, `hm wm` merge cells.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


@compiled
def _add_line(pixels, top, left, size, line):  # type: ignore[no-untyped-def]
    """A line of a cell's raster: each of its values is the sum of `size × size` pixels."""
    line[:] = 0
    for i in range(size):
        row = pixels[top + i, left : left + line.shape[0] * size]
        for x in range(line.shape[0]):
            for j in range(size):
                line[x] += row[x * size + j]


@compiled
def _add_raster(pixels, top, left, side, size):  # type: ignore[no-untyped-def]
    """Sum and sum of squares over the raster of a cell."""
    total, square = np.int64(0), np.int64(0)
    line = np.empty(side // size, np.int64)
    for y in range(0, side, size):
        _add_line(pixels, top + y, left, size, line)
        for x in range(line.shape[0]):
            total += line[x]
            square += line[x] * line[x]
    return total, square


@compiled
def _average(image, patches, patch_size, seen):  # type: ignore[no-untyped-def]
    """Write the averages of coarse patches over their pixels, in whole grey levels, halves upwards."""
    for i in range(patches.shape[0]):
        size = patches[i, 2]
        if size == 1:
            continue
        top, left, side = patches[i, 0] * patch_size, patches[i, 1] * patch_size, size * patch_size
        area = size * size
        line, row = np.empty(patch_size, np.int64), np.empty(side, np.uint8)
        for channel in range(image.shape[0]):
            for y in range(top, top + side, size):
                _add_line(image[channel], y, left, size, line)
                for x in range(patch_size):
                    level = (2 * line[x] + area) // (2 * area)
                    for j in range(size):
                        row[x * size + j] = level
                for i in range(size):
                    seen[channel, y + i, left : left + side] = row


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


@compiled
def _is_flat(image, row, col, size, patch_size, tolerance, root):  # type: ignore[no-untyped-def]
    """Whether the raster of a unit is flat; its sums are then in `root`."""
    values, area = (max(size, 2) // size * patch_size) ** 2, size * size
    limit = (tolerance * area) * (tolerance * area) * (values * values)
    for channel in range(image.shape[0]):
        total, square = _add_raster(
            image[channel], row * 2 * patch_size, col * 2 * patch_size, max(size, 2) * patch_size, size
        )
        if np.float64(values * square - total * total) > limit:
            return False
        root[channel] = total
    return True


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
            for channel in range(root.shape[0]):
                difference = abs(root[channel] * pixels[r, c] - roots[r, c, channel] * count)
                alike = alike and difference <= tolerance * (count * pixels[r, c])
        if alike:
            return (row - 1, col) if above else (row, col - 1)
    return -1, -1


@compiled
def keep_unlike(image, patches, patch_size, flat, predict, stays, seen):  # type: ignore[no-untyped-def]
    """Say of each patch whether it stays, and what is left of the picture.

    Args:
        image: `(c, H, W)` uint8.
        patches: `(n, 3)` int64 `(row, col, size)` of one tiling, in canonical order.
        patch_size: as `dropping.drop_repeats`.
        flat, predict: tolerances; a rule with a negative one is off.
        stays: `(n,)` bool, all true, written.
        seen: `(c, H, W)` uint8, a copy of the image, written; `(c, 0, 0)` if nobody asks, then `predict` is off.
    """
    rows, cols = image.shape[1] // (2 * patch_size), image.shape[2] // (2 * patch_size)
    show = seen.size > 0
    if show:
        _average(image, patches, patch_size, seen)
    roots = np.zeros((rows, cols, image.shape[0]), np.int64)  # sums over `pixels` pixels, so that all is exact
    pixels = np.zeros((rows, cols), np.int64)  # 0 where a cell is not flat
    units = np.full((rows, cols), -1, np.int64)
    coarsest = 1
    for i in range(patches.shape[0]):
        if patches[i, 0] % 2 == 0 and patches[i, 1] % 2 == 0:
            units[patches[i, 0] // 2, patches[i, 1] // 2] = i
        coarsest = max(coarsest, patches[i, 2] // 2)
    bits = 0
    while coarsest >> bits:
        bits += 1
    root = np.empty(image.shape[0], np.int64)
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
                down, right, px = row * 2 * patch_size, col * 2 * patch_size, side * 2 * patch_size
                dropped = False
                if flat >= 0 and _is_flat(image, row, col, size, patch_size, flat, root):
                    count = px * px
                    r, c = _root_beside(roots, pixels, row, col, side, flat, root, count)
                    if r >= 0:
                        dropped = True
                        root[:], count = roots[r, c], pixels[r, c]
                    pixels[row : row + side, col : col + side] = count
                    for channel in range(image.shape[0]):
                        roots[row : row + side, col : col + side, channel] = root[channel]
                        if dropped and show:
                            level = (2 * root[channel] + count) // (2 * count)
                            seen[channel, down : down + px, right : right + px] = level
                if not dropped and predict >= 0 and _repeat_likely(seen, down, right, px, predict):
                    dropped = True
                    pixels[row : row + side, col : col + side] = 0  # no colour to hand on
                if dropped:
                    for i in range(first, first + (4 if size == 1 else 1)):
                        stays[i] = False
