"""Rule `joint`: a number of patches, spent so that they also make fewer language tokens.

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
from apt_code.patch_layout import MERGE_SIZE
from apt_code.selection.best_splits import make_best_splits, make_best_splits_compiled
from apt_code.selection.common import as_arrays, can_select_compiled, check_maps, four_children, per_coarse_cell
from apt_code.selection.plan import BudgetPlan, plan_of_maps, warn_below_base
from apt_code.selection.tiling import tile

TOKEN_PRICE = 5.0
"""What `joint` takes a language token to cost, in vision patches."""


def select_patches_jointly(
    importance_maps: Mapping[int, Tensor],
    alpha: float = 1.0,
    coarse_scores: bool = False,
    plan: BudgetPlan | None = None,
) -> dict[int, Tensor]:
    """Rule `joint`: as many patches as `budget`, chosen so that they also make fewer language tokens.

    A split costs three patches, and `TOKEN_PRICE` patches for each language token that it adds: none within a 28-px
    cell, three for a 56-px cell. It gains the importance that disappears: the cell's own, less its children's. A
    cell is worth the best average gain per cost of itself and its j best children, j from 0 to 4, and no child is
    worth more than its parent. So a 56-px cell is opened for what lies in it and then refined first, instead of many
    being opened a little. This is rate–distortion-optimal tree pruning (Chou, Lookabaugh and Gray, 1989) with two
    rates.

    Made for `upsample_mse`, whose importance is a loss; with other maps the gain is a figure of speech. Arguments,
    masks and warning as `select_patches_by_budget`.
    """
    plan = plan or plan_of_maps(importance_maps, alpha)
    return tile(importance_maps, rule_joint(importance_maps, plan, coarse_scores))


def rule_joint(maps: Mapping[int, Tensor], plan: BudgetPlan, coarse_scores: bool) -> dict[int, Tensor]:
    """As `rule_v1`, for `joint`."""
    sides = check_maps(maps)
    warn_below_base(plan)
    if can_select_compiled(maps):
        from apt_code.selection import joint_kernel

        scores, prices = per_coarse_cell(maps, np.float64), np.array(_split_prices(len(sides)))
        with contextlib.suppress(KernelFailedError):
            run_kernel(joint_kernel.joint_scores, as_arrays(maps), PAD_VALUE, coarse_scores, prices, scores)
            return make_best_splits_compiled(maps, scores, plan)
    return make_best_splits(maps, _joint_scores(maps, sides, coarse_scores), plan)


def _joint_scores(maps: Mapping[int, Tensor], sides: Sequence[int], coarse_scores: bool) -> dict[int, Tensor]:
    """As `budget._split_scores`, in importance per cost."""
    prices = _split_prices(len(sides))
    mean = maps[sides[0]].double()
    loss, scores = torch.zeros_like(mean), {}  # losses are in units of a base cell's
    gains, costs = torch.zeros_like(mean), torch.zeros_like(mean)  # of a cell's best splits
    for scale, side in enumerate(sides[1:], start=1):
        shape, inside = maps[side].shape, maps[side] < PAD_VALUE
        mean = four_children(mean, shape).sum(0) / 4
        own = torch.where(inside, (maps[side].double() if coarse_scores else mean) * 4**scale, 0.0)
        gain = own - four_children(loss, shape).sum(0)
        cost = torch.full_like(gain, prices[scale - 1])
        child_gains, child_costs = four_children(gains, shape), four_children(costs, shape)
        best = (child_gains / child_costs).nan_to_num(0.0).argsort(dim=0, descending=True, stable=True)
        best_gain, best_cost = gain, cost
        for j in best.unbind(0):  # (b, rows, cols)
            gain = gain + child_gains.gather(0, j[None])[0]
            cost = cost + child_costs.gather(0, j[None])[0]
            better = gain * best_cost > best_gain * cost
            best_gain, best_cost = torch.where(better, gain, best_gain), torch.where(better, cost, best_cost)
        loss, gains, costs = own, torch.where(inside, best_gain, 0.0), torch.where(inside, best_cost, 0.0)
        scores[side] = torch.where(inside, best_gain / best_cost, -math.inf)
    for finer, side in reversed(list(itertools.pairwise(sides[1:]))):
        rows, cols = scores[finer].shape[1:]
        parent = scores[side].where(maps[side] < PAD_VALUE, math.inf)
        parent = parent.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :rows, :cols]
        scores[finer] = torch.minimum(scores[finer], parent)
    return scores


def _split_prices(num_scales: int) -> list[float]:
    """What a split costs at each coarse scale: three patches, and the price of the language tokens that it adds."""
    return [3.0 + (3.0 * TOKEN_PRICE if 2**scale > MERGE_SIZE else 0.0) for scale in range(1, num_scales)]
