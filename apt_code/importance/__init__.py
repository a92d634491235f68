"""Importance maps: for each cell of each scale, how much is at stake in keeping that cell whole.

Axis legend: `b` images of one shape, `H W` pixels, `h w` base grid, `p` side of a cell in pixels.
Every map function takes `(b, c, H, W)` images with values in [0, 255] and returns `{cell side in px: (b, h, w)}`
float32 maps whose grid is rounded up; a cell that sticks out of the image has importance `pad_value`. Selection does
not know which map it was given, so a new map is one file here and one row in `IMPORTANCE_METHODS`; its compiled form,
where it has one, lies beside it and is imported where it is used, since numba may be missing.

The sums behind the maps are exact for integer pixels, so the maps do not depend on the device, on the order of
summation, or on the neighbours in the batch. Where cells are too large for that, they are refused. Maps have no
gradient: they say which cells to split, and that has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from apt_code.importance.entropy import BINS, compute_patch_entropy_batched
from apt_code.importance.laplacian import compute_patch_laplacian_batched
from apt_code.importance.losses import Loss
from apt_code.importance.upsample_l4 import FOURTH_POWERS, compute_patch_upsample_l4_batched
from apt_code.importance.upsample_mse import SQUARES, compute_patch_upsample_mse_batched


@dataclass(frozen=True)
class ImportanceMethod:
    """One row of the table of importance maps.

    Args:
        compute: `(images, patch_size, num_scales, pad_value=…)` -> maps, as `compute_patch_entropy_batched`.
        unit: what the map, and so a threshold on it, is measured in.
        highest: `(side, bins)` -> the largest importance that a complete cell of `side` px can have.
        default_thresholds: keep-whole thresholds for cells of 2, 4, … base patches; the last one serves all coarser.
        coarse_scores: whether `budget` scores a coarse cell by the map's own value there, rather than by the mean of
            its finest cells.
        reads: the options of `PatchTokenizer` that `compute` takes by name, beside those that all maps take.
        loss: what the map is of, where a kernel can tell `v1` what is below its thresholds with less work than a map.
    """

    compute: Callable[..., dict[int, Tensor]]
    unit: str
    highest: Callable[[int, int], float]
    default_thresholds: tuple[float, ...]
    coarse_scores: bool
    reads: frozenset[str] = frozenset()
    loss: Loss | None = None

    def thresholds(self, num_scales: int) -> list[float]:
        """The default thresholds for `num_scales` scales, finest coarse scale first."""
        last = self.default_thresholds[-1]
        return [*self.default_thresholds, *[last] * num_scales][: num_scales - 1]


IMPORTANCE_METHODS: Mapping[str, ImportanceMethod] = {
    "entropy": ImportanceMethod(
        compute_patch_entropy_batched,
        "bits",
        lambda side, bins: math.log2(min(bins, side * side)),  # as many bins, each equally full
        (3.0, 2.0),
        coarse_scores=False,
        reads=frozenset({"bins"}),
    ),
    "laplacian": ImportanceMethod(
        compute_patch_laplacian_batched,
        "grey levels",
        lambda side, bins: 4 * 255.0,  # a chessboard of black and white pixels
        (4.0, 4.0),
        coarse_scores=False,
    ),
    "upsample_mse": ImportanceMethod(
        compute_patch_upsample_mse_batched,
        "grey levels²",
        lambda side, bins: 255.0**2,  # no pixel is restored as more than white or less than black
        (16.0, 16.0),  # 4 grey levels RMS: no text that a reader could read is lost (docs/reading.md)
        coarse_scores=True,
        loss=SQUARES,
    ),
    "upsample_l4": ImportanceMethod(
        compute_patch_upsample_l4_batched,
        "grey levels²",
        lambda side, bins: 255.0**2,  # as of upsample_mse, where every pixel is as far off
        (50.0, 50.0),
        coarse_scores=True,
        loss=FOURTH_POWERS,
    ),
}


@lru_cache(maxsize=64)
def threshold_warning(
    thresholds: tuple[float, ...], importance_method: str, base_patch_size: int, bins: int = BINS
) -> str | None:
    """What to say of thresholds above all that their map can reach, which keep every cell whole; `None` for nothing.

    Args:
        thresholds: those that `check_thresholds` returns. Infinite ones say that every cell is to stay whole: no word.
        importance_method: a name in `IMPORTANCE_METHODS`.
        base_patch_size: side of the finest patch in pixels.
        bins: histogram bins of the entropy.
    """
    method = IMPORTANCE_METHODS[importance_method]
    sides = [base_patch_size * 2**scale for scale in range(1, len(thresholds) + 1)]
    highest = [method.highest(side, bins) for side in sides]
    beyond = [
        f"{value:g} at {side} px (highest importance there: {most:.4g})"
        for value, side, most in zip(thresholds, sides, highest, strict=True)
        if most < value < math.inf
    ]
    if not beyond:
        return None
    return (
        f"thresholds={list(thresholds)} with the importance map {importance_method!r}, in {method.unit}: "
        f"{' and '.join(beyond)} can never be reached, so every such cell stays whole. Lower the thresholds "
        f"(default {method.thresholds(len(thresholds) + 1)}), name the map that they are meant for with "
        "importance_method, or say float('inf') if every cell is to stay whole"
    )
