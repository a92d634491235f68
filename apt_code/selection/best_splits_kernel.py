"""The compiled form of `best_splits`, over scores on the CPU; tests hold the two equal.

Axis legend: `b` images of one shape, `rows cols` cells of one scale.
"""

from __future__ import annotations

import numpy as np

from apt_code.compilation import compiled


@compiled
def keep_all_but_best(scores, k, whole):  # type: ignore[no-untyped-def]
    """What stays whole after the k best splits; of equal ones, the coarser, then the first in raster order.

    Args:
        scores: tuple of `(b, rows, cols)` float64, one per coarse scale: what splitting each cell is worth.
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
