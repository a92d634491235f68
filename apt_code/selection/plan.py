"""What `budget` and `joint` will do on a grid, known before any pixel is read.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from apt_code.importance.common import PAD_VALUE
from apt_code.selection.common import check_maps
from apt_code.selection.settings import check_fraction


@dataclass(frozen=True)
class BudgetPlan:
    """What `budget` and `joint` will do on a grid, known before any pixel is read.

    Attributes:
        base_small_tokens: `h · w`, patches of the fully split grid.
        base_tokens: patches of the coarsest tiling (nothing split that can stay whole).
        budget: `round(alpha · h · w)`, the patches asked for.
        k: splits made, each adding three patches.
        alpha: fraction of the base grid asked for.
        actual: `base_tokens + 3 k`, the patches that come out.
    """

    base_small_tokens: int
    base_tokens: int
    budget: int
    k: int
    alpha: float
    actual: int

    def info(self) -> dict[str, int | float]:
        """The founding documents' `last_budget_info` dictionary."""
        keys = ("base_tokens", "base_small_tokens", "budget", "k", "alpha", "actual")
        return {key: getattr(self, key) for key in keys}


def plan_budget(
    grid: tuple[int, int], alpha: float, num_scales: int = 3, complete: Sequence[int] | None = None
) -> BudgetPlan:
    """The arithmetic of the `budget` rule on an `(h, w)` base grid.

    Args:
        grid: base grid.
        alpha: in [0, 1].
        num_scales: scales of the tiling.
        complete: number of cells wholly inside the image at each coarse scale, finest first. Default: what a grid
            without partial base cells has, as Qwen2-VL's always is.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    check_fraction("budget", alpha)
    h, w = grid
    if complete is None:
        complete = [(h // 2**scale) * (w // 2**scale) for scale in range(1, num_scales)]
    candidates = sum(complete)
    base_tokens = h * w - 3 * candidates  # each whole cell stands in for four of the next finer scale
    budget = round(alpha * h * w)
    k = min(max(0, (budget - base_tokens) // 3), candidates)
    return BudgetPlan(h * w, base_tokens, budget, k, alpha, base_tokens + 3 * k)


def plan_of_maps(importance_maps: Mapping[int, Tensor], alpha: float) -> BudgetPlan:
    """The budget plan for the images behind `importance_maps` (one plan: they all have one shape)."""
    sides = check_maps(importance_maps)
    complete = [int((importance_maps[side][0] < PAD_VALUE).sum()) for side in sides[1:]]
    base = importance_maps[sides[0]]
    return plan_budget((base.shape[1], base.shape[2]), alpha, len(sides), complete)


def plan_of_size(image_size: tuple[int, int], patch_size: int, alpha: float, num_scales: int = 3) -> BudgetPlan:
    """The same for images of `(H, W)` pixels: what it takes is known before any map is, and without asking a GPU."""
    height, width = image_size
    complete = [
        (height // side) * (width // side) for side in (patch_size * 2**scale for scale in range(1, num_scales))
    ]
    return plan_budget((-(-height // patch_size), -(-width // patch_size)), alpha, num_scales, complete)


def warn_below_base(plan: BudgetPlan) -> None:
    if plan.budget < plan.base_tokens:
        warnings.warn(
            f"alpha={plan.alpha} asks for {plan.budget} of {plan.base_small_tokens} patches, but the coarsest tiling "
            f"already has {plan.base_tokens}; using that. The smallest alpha that can be met is "
            f"{math.ceil(plan.base_tokens / plan.base_small_tokens * 1e4) / 1e4}",
            stacklevel=4,
        )
