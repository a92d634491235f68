"""The compiled scores of `budget`, over maps on the CPU; tests hold them equal to the plain code, to the bit.

Axis legend: `b` images of one shape, `rows cols` cells of one scale.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


@compiled
def split_scores(maps, pad_value, coarse_scores, scores):  # type: ignore[no-untyped-def]
    """The score of splitting each coarse cell, as `budget._split_scores` has it.

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
