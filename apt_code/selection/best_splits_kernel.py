"""The compiled form of `best_splits`, over scores on the CPU; tests hold the two equal.

Axis legend: `b` images of one shape, `rows cols` cells of one scale.
"""

from __future__ import annotations

from apt_code.compilation import compiled


@compiled
def keep_all_but_best(scores, k, last, whole):  # type: ignore[no-untyped-def]
    """What stays whole after the k best splits; of equal ones, the coarser, then the first in raster order.

    Args:
        scores: tuple of `(b, rows, cols)` float64, one per coarse scale: what splitting each cell is worth.
        k: at most the number of cells that can stay whole.
        last: `(b,)` float64, each image's k-th best score, +inf for a `k` of 0.
        whole: tuple of `(b, rows, cols)` bool, one per coarse scale, written.
    """
    for image in range(scores[0].shape[0]):
        ties = k
        for found in scores:
            for r in range(found.shape[1]):
                for c in range(found.shape[2]):
                    ties -= found[image, r, c] > last[image]
        for scale in range(len(scores) - 1, -1, -1):
            found = scores[scale][image]
            for r in range(found.shape[0]):
                for c in range(found.shape[1]):
                    split = found[r, c] > last[image]
                    if found[r, c] == last[image] and ties > 0:
                        split = True
                        ties -= 1
                    whole[scale][image, r, c] = not split
