"""Compiled selection by budget, and the way from any rule to layouts, over importance maps on the CPU.

Axis legend: `b` images of one shape, `n` patches of all of them, `rows cols` cells of one scale, `h w` base grid. The
plain code is `patch_selection` and `PatchLayout.from_masks_of_batch`; tests hold the two equal.
"""

from __future__ import annotations

import numpy as np

from apt_code.kernels import compiled


@compiled
def best_splits(maps, pad_value, coarse_scores, k):  # type: ignore[no-untyped-def]
    """The k best splits of `budget`, as `patch_selection.rule_budget` makes them.

    Args:
        maps: tuple of `(b, rows, cols)` float32 importance maps, finest first.
        pad_value, coarse_scores: as there.
        k: at most the number of complete coarse cells.

    Returns:
        `(b, cells)` bool, whether each coarse cell is split; coarser scales first, in raster order.
    """
    cells = 0
    for scale in range(1, len(maps)):
        cells += maps[scale].shape[1] * maps[scale].shape[2]
    split = np.zeros((maps[0].shape[0], cells), np.bool_)
    scores = np.empty(cells, np.float64)
    if k == 0:
        return split
    for image in range(split.shape[0]):
        end = cells
        means, finer = maps[0][image].astype(np.float64), np.empty((0, 0))
        for scale in range(1, len(maps)):
            own = maps[scale][image]
            rows, cols = own.shape
            coarse_means, best = np.zeros((rows, cols)), np.empty((rows, cols))
            for r in range(rows):
                for c in range(cols):
                    total, child = 0.0, -np.inf
                    for y in range(2 * r, min(2 * r + 2, means.shape[0])):
                        for x in range(2 * c, min(2 * c + 2, means.shape[1])):
                            total += means[y, x]
                            if scale > 1:
                                child = max(child, finer[y, x])
                    coarse_means[r, c] = total / 4
                    score = np.float64(own[r, c]) if coarse_scores else total / 4
                    best[r, c] = max(score, child) if own[r, c] < pad_value else -np.inf
            scores[end - rows * cols : end] = best.ravel()
            end -= rows * cols
            means, finer = coarse_means, best
        last = np.partition(scores, cells - k)[cells - k]  # the k-th best; of its equals, the first are taken
        left = k
        for cell in range(cells):
            if scores[cell] > last:
                split[image, cell] = True
                left -= 1
        for cell in range(cells):
            if left > 0 and scores[cell] == last:
                split[image, cell] = True
                left -= 1
    return split


@compiled
def canonical_patches(maps, whole, pad_value):  # type: ignore[no-untyped-def]
    """The tiling that keeps cells whole where asked to, largest first, in canonical order.

    Args:
        maps, pad_value: as `best_splits`.
        whole: `(b, cells)` bool, in the order of `best_splits`.

    Returns:
        `(n, 3)` int64 `(row, col, size)` of all images, and `(b,)` how many each has.
    """
    batch, height, width = maps[0].shape
    begins = np.zeros(len(maps), np.int64)
    for scale in range(len(maps) - 2, 0, -1):
        begins[scale] = begins[scale + 1] + maps[scale + 1].shape[1] * maps[scale + 1].shape[2]
    patches = np.empty((batch * height * width, 3), np.int64)
    counts = np.zeros(batch, np.int64)
    n = 0
    for image in range(batch):
        before = n
        for row in range(0, height, 2):  # merge cells in raster order
            for col in range(0, width, 2):
                scale = len(maps) - 1
                while scale > 0:
                    r, c = row >> scale, col >> scale
                    cols = maps[scale].shape[2]
                    if whole[image, begins[scale] + r * cols + c] and maps[scale][image, r, c] < pad_value:
                        break
                    scale -= 1
                if scale > 0:
                    if row % (1 << scale) == 0 and col % (1 << scale) == 0:
                        patches[n, 0], patches[n, 1], patches[n, 2] = row, col, 1 << scale
                        n += 1
                    continue
                for y in range(row, min(row + 2, height)):
                    for x in range(col, min(col + 2, width)):
                        patches[n, 0], patches[n, 1], patches[n, 2] = y, x, 1
                        n += 1
        counts[image] = n - before
    return patches[:n], counts
