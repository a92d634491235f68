"""Which cells are kept whole: the four selection rules over importance maps.

Axis legend: `b` images of one shape, `h w` base grid. Importance maps and masks are `{cell side in px: (b, rows,
cols)}`, sides doubling from the base patch up, grids rounded up. A cell of importance `PAD_VALUE` or more sticks out
of the image: it is always split. A mask holds 1 where a patch of that side is part of the tiling; together the masks
cover every base cell once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.exact_sum import exact_sum
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.selection_settings import check_alpha, check_thresholds

PAD_VALUE = 1e6
"""Importance of a cell that is not wholly inside the image."""

TOKEN_PRICE = 5.0
"""What `joint` takes a language token to cost, in vision patches."""


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
    check_alpha("budget", alpha)
    h, w = grid
    if complete is None:
        complete = [(h // 2**scale) * (w // 2**scale) for scale in range(1, num_scales)]
    candidates = sum(complete)
    base_tokens = h * w - 3 * candidates  # each whole cell stands in for four of the next finer scale
    budget = round(alpha * h * w)
    k = min(max(0, (budget - base_tokens) // 3), candidates)
    return BudgetPlan(h * w, base_tokens, budget, k, alpha, base_tokens + 3 * k)


def select_patches_by_threshold(entropy_maps: Mapping[int, Tensor], thresholds: Sequence[float]) -> dict[int, Tensor]:
    """Rule `v1`: a cell is kept whole where its importance is below its scale's threshold, largest cells first.

    Args:
        entropy_maps: `{side: (b, rows, cols)}`, of any importance method (the name is the founding documents').
        thresholds: one per coarse scale, finest first; in the unit of the map. Higher keeps more cells whole.

    Returns:
        `{side: (b, rows, cols)}` float 0/1 masks of one tiling per image.
    """
    return tile(entropy_maps, rule_v1(entropy_maps, thresholds))


def rule_v1(maps: Mapping[int, Tensor], thresholds: Sequence[float]) -> dict[int, Tensor]:
    """Where `v1` would keep a cell whole, at each coarse side; what `tile` makes of it is the tiling."""
    sides = _check_maps(maps)
    values = check_thresholds(thresholds, len(sides))
    return {side: maps[side] < value for side, value in zip(sides[1:], values, strict=True)}


def select_patches_by_threshold_v2(entropy_maps: Mapping[int, Tensor], alpha: float = 1.0) -> dict[int, Tensor]:
    """Rule `v2`: one threshold per image for all scales, `alpha × mean importance` of its complete coarsest cells.

    A larger alpha keeps more cells whole, so it gives *fewer* patches. An image too small for a complete cell of the
    coarsest scale uses the coarsest scale that has one. Masks as `select_patches_by_threshold`.
    """
    return tile(entropy_maps, rule_v2(entropy_maps, alpha))


def rule_v2(maps: Mapping[int, Tensor], alpha: float) -> dict[int, Tensor]:
    """As `rule_v1`, for `v2`."""
    check_alpha("v2", alpha)
    sides = _check_maps(maps)
    threshold = maps[sides[0]].new_full((len(maps[sides[0]]), 1, 1), -math.inf, dtype=torch.float64)
    for side in sides[1:]:  # the coarsest scale that has a complete cell has the last word
        complete = maps[side] < PAD_VALUE
        count = complete.sum((1, 2))
        # Fixed point keeps the mean independent of the order of summation, and so of the device.
        fixed = torch.where(complete, maps[side], 0.0).double().mul(2.0**32).round().long()
        mean = exact_sum(fixed, (1, 2), PAD_VALUE * 2.0**32) / 2.0**32 / count
        threshold = torch.where((count > 0).view(-1, 1, 1), (alpha * mean).view(-1, 1, 1), threshold)
    return {side: maps[side].double() < threshold for side in sides[1:]}


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
    sides = _check_maps(maps)
    _warn_below_base(plan)
    if _can_select_compiled(maps):
        from apt_code import selection_kernels

        scores = _per_coarse_cell(maps, np.float64)
        with contextlib.suppress(KernelFailedError):
            run_kernel(selection_kernels.split_scores, _as_arrays(maps), PAD_VALUE, coarse_scores, scores)
            return _make_best_splits_compiled(maps, scores, plan)
    return _make_best_splits(maps, _split_scores(maps, sides, coarse_scores), plan)


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
    sides = _check_maps(maps)
    _warn_below_base(plan)
    if _can_select_compiled(maps):
        from apt_code import selection_kernels

        scores, prices = _per_coarse_cell(maps, np.float64), np.array(_split_prices(len(sides)))
        with contextlib.suppress(KernelFailedError):
            run_kernel(selection_kernels.joint_scores, _as_arrays(maps), PAD_VALUE, coarse_scores, prices, scores)
            return _make_best_splits_compiled(maps, scores, plan)
    return _make_best_splits(maps, _joint_scores(maps, sides, coarse_scores), plan)


def _make_best_splits(maps: Mapping[int, Tensor], scores: Mapping[int, Tensor], plan: BudgetPlan) -> dict[int, Tensor]:
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


def _make_best_splits_compiled(
    maps: Mapping[int, Tensor], scores: tuple[np.ndarray, ...], plan: BudgetPlan
) -> dict[int, Tensor]:
    from apt_code import selection_kernels

    whole = _per_coarse_cell(maps, np.bool_)
    run_kernel(selection_kernels.keep_all_but_best, scores, plan.k, whole)
    return {side: torch.from_numpy(kept) for side, kept in zip(sorted(maps)[1:], whole, strict=True)}


def _can_select_compiled(maps: Mapping[int, Tensor]) -> bool:
    return len(maps) > 1 and can_compile(maps[min(maps)], torch.float32)


def _per_coarse_cell(maps: Mapping[int, Tensor], dtype: type) -> tuple[np.ndarray, ...]:
    """An array like each coarse map, for a kernel to write."""
    return tuple(np.empty(maps[side].shape, dtype) for side in sorted(maps)[1:])


def _warn_below_base(plan: BudgetPlan) -> None:
    if plan.budget < plan.base_tokens:
        warnings.warn(
            f"alpha={plan.alpha} asks for {plan.budget} of {plan.base_small_tokens} patches, but the coarsest tiling "
            f"already has {plan.base_tokens}; using that. The smallest alpha that can be met is "
            f"{math.ceil(plan.base_tokens / plan.base_small_tokens * 1e4) / 1e4}",
            stacklevel=4,
        )


def lay_out(maps: Mapping[int, Tensor], keep_whole: Mapping[int, Tensor]) -> list[PatchLayout]:
    """One layout per image, on the host, of the tiling that keeps cells whole where a rule would, largest first."""
    if _can_select_compiled(maps):
        from apt_code import selection_kernels

        with contextlib.suppress(KernelFailedError):
            patches, counts = run_kernel(
                selection_kernels.canonical_patches, _as_arrays(maps), _as_arrays(keep_whole), PAD_VALUE
            )
            h, w = maps[min(maps)].shape[1:]
            return [PatchLayout((h, w), part) for part in torch.from_numpy(patches).split(counts.tolist())]
    return PatchLayout.from_masks_of_batch(tile(maps, keep_whole))


def _as_arrays(maps: Mapping[int, Tensor]) -> tuple[np.ndarray, ...]:
    """Finest first. Which cells are split has no gradient, so maps that have one, a caller's own, leave it behind."""
    return tuple(maps[side].detach().contiguous().numpy() for side in sorted(maps))


def plan_of_maps(importance_maps: Mapping[int, Tensor], alpha: float) -> BudgetPlan:
    """The budget plan for the images behind `importance_maps` (one plan: they all have one shape)."""
    sides = _check_maps(importance_maps)
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


def _split_scores(maps: Mapping[int, Tensor], sides: Sequence[int], coarse_scores: bool) -> dict[int, Tensor]:
    """`{side: (b, rows, cols)}` float64 score of splitting each coarse cell; −inf where it is split anyway."""
    scores: dict[int, Tensor] = {}
    mean = maps[sides[0]].double()
    for finer, side in itertools.pairwise(sides):
        mean = _four_children(mean, maps[side].shape).sum(0) / 4
        own = maps[side].double() if coarse_scores else mean
        if finer in scores:
            own = torch.maximum(own, _four_children(scores[finer], maps[side].shape).amax(0))
        scores[side] = torch.where(maps[side] < PAD_VALUE, own, -math.inf)
    return scores


def _joint_scores(maps: Mapping[int, Tensor], sides: Sequence[int], coarse_scores: bool) -> dict[int, Tensor]:
    """As `_split_scores`, in importance per cost."""
    prices = _split_prices(len(sides))
    mean = maps[sides[0]].double()
    loss, scores = torch.zeros_like(mean), {}  # losses are in units of a base cell's
    gains, costs = torch.zeros_like(mean), torch.zeros_like(mean)  # of a cell's best splits
    for scale, side in enumerate(sides[1:], start=1):
        shape, inside = maps[side].shape, maps[side] < PAD_VALUE
        mean = _four_children(mean, shape).sum(0) / 4
        own = torch.where(inside, (maps[side].double() if coarse_scores else mean) * 4**scale, 0.0)
        gain = own - _four_children(loss, shape).sum(0)
        cost = torch.full_like(gain, prices[scale - 1])
        child_gains, child_costs = _four_children(gains, shape), _four_children(costs, shape)
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


def _four_children(values: Tensor, shape: torch.Size) -> Tensor:
    """The 2×2 children of every cell: `(b, rows, cols)` -> `(4, b, *shape[1:])`; cells beyond the edge count as 0."""
    padding = (0, 2 * shape[2] - values.shape[2], 0, 2 * shape[1] - values.shape[1])
    padded = torch.nn.functional.pad(values, padding)
    return torch.stack([padded[:, row::2, col::2] for row in (0, 1) for col in (0, 1)])


def tile(maps: Mapping[int, Tensor], keep_whole: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Masks of the tiling that keeps a cell whole where asked to, largest first, and never outside the image."""
    sides = sorted(maps)
    masks: dict[int, Tensor] = {}
    free = torch.ones_like(maps[sides[-1]], dtype=torch.bool)
    for side, finer in zip(reversed(sides[1:]), reversed(sides[:-1]), strict=True):
        whole = free & keep_whole[side] & (maps[side] < PAD_VALUE)
        masks[side] = whole.float()
        rows, cols = maps[finer].shape[1:]
        free = (free & ~whole).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :rows, :cols]
    masks[sides[0]] = free.float()
    return {side: masks[side] for side in sides}


def _check_maps(maps: Mapping[int, Tensor]) -> list[int]:
    """The sides of the maps, ascending, after checking that they form one pyramid."""
    sides = sorted(maps)
    if not sides:
        raise ValueError("importance_maps is empty; expected {cell side in px: (batch, rows, cols)}")
    base = maps[sides[0]]
    for scale, side in enumerate(sides):
        size = 2**scale
        expected = (base.shape[0], -(-base.shape[-2] // size), -(-base.shape[-1] // size)) if base.ndim == 3 else None
        if side != sides[0] * size or tuple(maps[side].shape) != expected:
            raise ValueError(
                f"importance_maps[{side}] has shape {tuple(maps[side].shape)}; expected sides that double from "
                f"{sides[0]} px and (batch, rows, cols) grids that halve, rounded up, from {tuple(base.shape)}"
            )
    return sides
