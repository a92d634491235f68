"""The compiled form of `entropy`, over uint8 images on the CPU: one call per batch, one pass over its pixels.

Axis legend: `b` images of one shape, `H W` pixels, `rows cols` complete cells of one scale. Every sum is exact, so the
results are those of the plain code to the bit; tests hold the two equal.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled

GREY_RANGE = np.uint32(255 * 10_000)
MOST_BINS = 2**32 // (255 * 10_000)
"""Grey level times bins is counted in 32 bits."""
MOST_PIXELS = 2**16 - 1
"""Histograms count a cell's pixels in 16 bits."""


def working_arrays(width: int, patch_size: int, num_scales: int, bins: int) -> tuple[np.ndarray, ...]:
    """What `entropies` works in, for images of this width: made here, because a kernel that makes arrays takes seconds
    more to compile."""
    across = 2 ** (num_scales - 1)
    cells = (across, across)
    return (
        np.empty((across * patch_size, width // patch_size * patch_size), np.uint16),
        np.zeros((num_scales, *cells, bins), np.uint16),
        np.empty(cells, np.uint16),
        np.empty(cells, np.uint16),
    )


@compiled
def _bins_of_line(red, green, blue, weights, bins, line):  # type: ignore[no-untyped-def]
    """The histogram bin of every pixel of a line."""
    for x in range(line.shape[0]):
        grey = np.uint32(weights[0] * red[x] + weights[1] * green[x] + weights[2] * blue[x])
        line[x] = min(grey // GREY_RANGE, np.uint32(bins - 1))


@compiled
def entropies(images, patch_size, bins, weights, table, units, strip, counts, darkest, brightest, maps):  # type: ignore[no-untyped-def]
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
        strip, counts, darkest, brightest: to work in, as `working_arrays` makes them.
        maps: tuple of `(b, at least rows, at least cols)` float32, finest first, written, but for cells that
            stick out.
    """
    rows, cols = images.shape[2] // patch_size, images.shape[3] // patch_size
    num_scales = len(maps)
    across = counts.shape[1]  # base cells along a side of the coarsest cell
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
                        maps[0][image, top + r, left + c] = (table[patch_size * patch_size] - total) * units[0]
                for scale in range(1, num_scales):
                    finer = counts[scale - 1]
                    for r in range(tall >> scale):
                        for c in range(wide >> scale):
                            histogram = counts[scale, r, c]
                            low, high = darkest[2 * r, 2 * c], brightest[2 * r, 2 * c]
                            for y in range(2 * r, 2 * r + 2):
                                for x in range(2 * c, 2 * c + 2):
                                    low, high = min(low, darkest[y, x]), max(high, brightest[y, x])
                            upper, lower = finer[2 * r], finer[2 * r + 1]
                            for b in range(low, high + 1):
                                histogram[b] = (
                                    upper[2 * c, b] + upper[2 * c + 1, b] + lower[2 * c, b] + lower[2 * c + 1, b]
                                )
                            for child in (upper[2 * c], upper[2 * c + 1], lower[2 * c], lower[2 * c + 1]):
                                child[low : high + 1] = 0
                            darkest[r, c], brightest[r, c] = low, high  # its children are read already
                            total = np.int64(0)
                            for b in range(low, high + 1):
                                total += table[histogram[b]]
                            missing = table[(patch_size << scale) * (patch_size << scale)] - total
                            maps[scale][image, (top >> scale) + r, (left >> scale) + c] = missing * units[scale]
                if tall == wide == across:  # then all but the coarsest were emptied with their parents
                    counts[num_scales - 1, 0, 0, darkest[0, 0] : brightest[0, 0] + 1] = 0
                else:
                    counts[:] = 0
