"""Compiled selection by `budget` and `joint`, and the way from any rule to layouts, over importance maps on the CPU.

Axis legend: `b` images of one shape, `n` patches of all of them, `rows cols` cells of one scale, `h w` base grid. The
plain code is `patch_selection` and `PatchLayout.from_masks_of_batch`; tests hold the two equal.
"""

from __future__ import annotations

import numpy as np

from apt_code.kernels import compiled


@compiled
def split_scores(maps, pad_value, coarse_scores, scores):  # type: ignore[no-untyped-def]
    """The score of splitting each coarse cell, as `patch_selection._split_scores` has it.

    Args:
        maps: tuple of `(b, rows, cols)` float32 importance maps, finest first.
        pad_value, coarse_scores: as there.
        scores: tuple of `(b, rows, cols)` float64, one per coarse scale, written.
    """
    for image in range(maps[0].shape[0]):
        means = maps[0][image].astype(np.float64)
        for scale in range(1, len(maps)):
            own, found = maps[scale][image], scores[scale - 1][image]
            coarse_means = np.zeros(own.shape)
            for r in range(own.shape[0]):
                for c in range(own.shape[1]):
                    total, best_child = 0.0, -np.inf
                    for y in range(2 * r, min(2 * r + 2, means.shape[0])):
                        for x in range(2 * c, min(2 * c + 2, means.shape[1])):
                            total += means[y, x]
                            if scale > 1:
                                best_child = max(best_child, scores[scale - 2][image, y, x])
                    coarse_means[r, c] = total / 4
                    score = np.float64(own[r, c]) if coarse_scores else total / 4
                    found[r, c] = max(score, best_child) if own[r, c] < pad_value else -np.inf
            means = coarse_means


@compiled
def joint_scores(maps, pad_value, coarse_scores, prices, scores):  # type: ignore[no-untyped-def]
    """As `split_scores`, by `patch_selection._joint_scores`; `prices` are those of a split at each coarse scale."""
    for image in range(maps[0].shape[0]):
        means = maps[0][image].astype(np.float64)
        losses, gains, costs = np.zeros(means.shape), np.zeros(means.shape), np.zeros(means.shape)
        rates = np.empty(4)
        for scale in range(1, len(maps)):
            own, found = maps[scale][image], scores[scale - 1][image]
            coarse_means, coarse_losses = np.zeros(own.shape), np.zeros(own.shape)
            coarse_gains, coarse_costs = np.zeros(own.shape), np.zeros(own.shape)
            for r in range(own.shape[0]):
                for c in range(own.shape[1]):
                    total, lost = 0.0, 0.0
                    rates[:] = -np.inf
                    for y in range(2 * r, min(2 * r + 2, means.shape[0])):
                        for x in range(2 * c, min(2 * c + 2, means.shape[1])):
                            total += means[y, x]
                            lost += losses[y, x]
                            if costs[y, x] > 0:
                                rates[2 * (y - 2 * r) + x - 2 * c] = gains[y, x] / costs[y, x]
                    coarse_means[r, c] = total / 4
                    if not own[r, c] < pad_value:
                        found[r, c] = -np.inf
                        continue
                    mean = np.float64(own[r, c]) if coarse_scores else total / 4
                    coarse_losses[r, c] = mean * 4**scale
                    gain, cost = coarse_losses[r, c] - lost, prices[scale - 1]
                    best_gain, best_cost = gain, cost
                    for _ in range(4):  # the best child first; of equals, the first
                        child = 0
                        for i in range(1, 4):
                            if rates[i] > rates[child]:
                                child = i
                        if rates[child] == -np.inf:
                            break
                        rates[child] = -np.inf
                        gain += gains[2 * r + child // 2, 2 * c + child % 2]
                        cost += costs[2 * r + child // 2, 2 * c + child % 2]
                        if gain * best_cost > best_gain * cost:
                            best_gain, best_cost = gain, cost
                    coarse_gains[r, c], coarse_costs[r, c] = best_gain, best_cost
                    found[r, c] = best_gain / best_cost
            means, losses, gains, costs = coarse_means, coarse_losses, coarse_gains, coarse_costs
        for scale in range(len(maps) - 1, 1, -1):  # no child is worth more than its parent
            finer = scores[scale - 2][image]
            for y in range(finer.shape[0]):
                for x in range(finer.shape[1]):
                    if maps[scale][image, y // 2, x // 2] < pad_value:
                        finer[y, x] = min(finer[y, x], scores[scale - 1][image, y // 2, x // 2])


@compiled
def keep_all_but_best(scores, k, whole):  # type: ignore[no-untyped-def]
    """What stays whole after the k best splits; of equal ones, the coarser, then the first in raster order.

    Args:
        scores: as `split_scores` writes them.
        k: at most the number of cells that can stay whole.
        whole: tuple of `(b, rows, cols)` bool, one per coarse scale, written.
    """
    cells = 0
    for found in scores:
        cells += found[0].size
    ranked = np.empty(cells, np.float64)
    for image in range(scores[0].shape[0]):
        if k == 0:
            for kept in whole:
                kept[image] = True
            continue
        begin = 0
        for found in scores:
            ranked[begin : begin + found[image].size] = found[image].ravel()
            begin += found[image].size
        last = np.partition(ranked, cells - k)[cells - k]  # the k-th best
        ties = k
        for found in scores:
            for r in range(found.shape[1]):
                for c in range(found.shape[2]):
                    ties -= found[image, r, c] > last
        for scale in range(len(scores) - 1, -1, -1):
            found = scores[scale][image]
            for r in range(found.shape[0]):
                for c in range(found.shape[1]):
                    split = found[r, c] > last
                    if found[r, c] == last and ties > 0:
                        split = True
                        ties -= 1
                    whole[scale][image, r, c] = not split


@compiled
def canonical_patches(maps, whole, pad_value):  # type: ignore[no-untyped-def]
    """The tiling that keeps cells whole where asked to, largest first, in canonical order.

    Args:
        maps, pad_value: as `split_scores`.
        whole: as `keep_all_but_best` writes them.

    Returns:
        `(n, 3)` int64 `(row, col, size)` of all images, and `(b,)` how many each has.
    """
    batch, height, width = maps[0].shape
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
                    if whole[scale - 1][image, r, c] and maps[scale][image, r, c] < pad_value:
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
