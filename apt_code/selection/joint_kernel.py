"""The compiled scores of `joint`, over maps on the CPU; tests hold them equal to the plain code, to the bit.

Axis legend: `b` images of one shape, `rows cols` cells of one scale.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


@compiled
def joint_scores(maps, pad_value, coarse_scores, prices, scores):  # type: ignore[no-untyped-def]
    """The score of splitting each coarse cell, as `joint._joint_scores` has it.

    Args:
        maps: tuple of `(b, rows, cols)` float32 importance maps, finest first.
        pad_value, coarse_scores: as there.
        prices: of a split at each coarse scale.
        scores: tuple of `(b, rows, cols)` float64, one per coarse scale, written.
    """
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
