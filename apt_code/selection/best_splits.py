"""The k best splits, by the scores that `budget` or `joint` gives them.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from apt_code.compilation import run_kernel
from apt_code.selection.common import per_coarse_cell
from apt_code.selection.plan import BudgetPlan


def make_best_splits(maps: Mapping[int, Tensor], scores: Mapping[int, Tensor], plan: BudgetPlan) -> dict[int, Tensor]:
    """What stays whole after the k best splits; a parent must score at least as much as its children."""
    sides = sorted(maps)
    order = [scores[side].flatten(1) for side in reversed(sides[1:])]  # coarser first: the tie rule of a stable sort
    split: dict[int, Tensor] = {}
    if order:
        ranked = torch.cat(order, dim=1)
        chosen = ranked.sort(dim=1, descending=True, stable=True).indices[:, : plan.k]
        flags = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, chosen, True)
        parts = flags.split([part.shape[1] for part in order], dim=1)
        split = {side: part.view_as(scores[side]) for side, part in zip(reversed(sides[1:]), parts, strict=True)}
    return {side: ~split[side] for side in sides[1:]}


def make_best_splits_compiled(
    maps: Mapping[int, Tensor], scores: tuple[np.ndarray, ...], plan: BudgetPlan
) -> dict[int, Tensor]:
    from apt_code.selection import best_splits_kernel

    whole = per_coarse_cell(maps, np.bool_)
    ranked = np.concatenate([found.reshape(len(found), -1) for found in scores], axis=1)
    # by numpy: the same in the kernel would take seconds to compile
    place = ranked.shape[1] - plan.k
    last = np.partition(ranked, place)[:, place] if plan.k else np.full(len(ranked), np.inf)
    run_kernel(best_splits_kernel.keep_all_but_best, scores, plan.k, last, whole)
    return {side: torch.from_numpy(kept) for side, kept in zip(sorted(maps)[1:], whole, strict=True)}
