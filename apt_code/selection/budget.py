"""Rule `budget`: a number of patches, spent where the maps are highest.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from apt_code.compilation import KernelFailedError, run_kernel
from apt_code.importance.common import PAD_VALUE
from apt_code.selection.best_splits import make_best_splits, make_best_splits_compiled
from apt_code.selection.common import as_arrays, can_select_compiled, check_maps, four_children, per_coarse_cell
from apt_code.selection.plan import BudgetPlan, plan_of_maps, warn_below_base
from apt_code.selection.tiling import tile


def select_patches_by_budget(
    entropy_maps: Mapping[int, Tensor],
    alpha: float = 1.0,
    coarse_scores: bool = False,
    plan: BudgetPlan | None = None,
) -> dict[int, Tensor]:
    """Rule `budget`: from the coarsest tiling, make the k best splits that `round(alpha · h · w)` patches allow.

    A cell's score is the mean of its finest cells' importance, or, with `coarse_scores`, the map's own value for that
    cell; a cell that has splittable children scores at least as much as the best of them, so a child is never split
    before its parent. Ties go to the coarser cell, then to raster order. Masks as `select_patches_by_threshold`.
    `plan` is that of `alpha` and of these maps, where it is known already.

    Warns:
        UserWarning: the budget is below the coarsest tiling, which is then used.
    """
    plan = plan or plan_of_maps(entropy_maps, alpha)
    return tile(entropy_maps, rule_budget(entropy_maps, plan, coarse_scores))


def rule_budget(maps: Mapping[int, Tensor], plan: BudgetPlan, coarse_scores: bool) -> dict[int, Tensor]:
    """As `rule_v1`, for `budget`."""
    sides = check_maps(maps)
    warn_below_base(plan)
    if can_select_compiled(maps):
        from apt_code.selection import budget_kernel

        scores = per_coarse_cell(maps, np.float64)
        with contextlib.suppress(KernelFailedError):
            run_kernel(budget_kernel.split_scores, as_arrays(maps), PAD_VALUE, coarse_scores, scores)
            return make_best_splits_compiled(maps, scores, plan)
    return make_best_splits(maps, _split_scores(maps, sides, coarse_scores), plan)


def _split_scores(maps: Mapping[int, Tensor], sides: Sequence[int], coarse_scores: bool) -> dict[int, Tensor]:
    """`{side: (b, rows, cols)}` float64 score of splitting each coarse cell; −inf where it is split anyway."""
    scores: dict[int, Tensor] = {}
    mean = maps[sides[0]].double()
    for finer, side in itertools.pairwise(sides):
        mean = four_children(mean, maps[side].shape).sum(0) / 4
        own = maps[side].double() if coarse_scores else mean
        if finer in scores:
            own = torch.maximum(own, four_children(scores[finer], maps[side].shape).amax(0))
        scores[side] = torch.where(maps[side] < PAD_VALUE, own, -math.inf)
    return scores
