"""The selection rules against slow references, and the promises of `budget` as properties over random grids."""

import itertools
import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from apt_code import patch_selection, selection_kernels
from apt_code.patch_selection import (
    PAD_VALUE,
    TOKEN_PRICE,
    plan_budget,
    plan_of_maps,
    select_patches_by_budget,
    select_patches_by_threshold,
    select_patches_by_threshold_v2,
    select_patches_jointly,
)
from apt_code.selection_settings import check_alpha, check_thresholds
from tests.apt_code import references
from tests.apt_code.references import random_maps, tiling_of_masks

# Sides that are no multiple of anything, and a few levels of importance so that ties are common.
pyramids = st.builds(
    random_maps,
    height=st.integers(1, 280),
    width=st.integers(1, 280),
    patch=st.sampled_from([14, 16]),
    num_scales=st.integers(1, 4),
    batch=st.integers(1, 3),
    levels=st.sampled_from([0, 1, 3, 8]),
    seed=st.integers(0, 2**16),
)
fractions = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.5, 1.0]))

BUDGET_RULES = (select_patches_by_budget, select_patches_jointly)
budget_rules = st.sampled_from(BUDGET_RULES)

# Random grids often have a coarsest tiling above the budget; the warning has its own tests.
pytestmark = pytest.mark.filterwarnings("ignore:alpha=:UserWarning")


def images_of(maps: dict[int, torch.Tensor]) -> list[dict[int, np.ndarray]]:
    """A batch of maps as one dictionary per image, for the references."""
    return [{side: m[i].double().numpy() for side, m in maps.items()} for i in range(len(next(iter(maps.values()))))]


def tilings_of(masks: dict[int, torch.Tensor]) -> list[set]:
    batch = len(next(iter(masks.values())))
    return [tiling_of_masks({side: mask[i] for side, mask in masks.items()}) for i in range(batch)]


def num_patches(masks: dict[int, torch.Tensor]) -> list[int]:
    return sum(mask.sum((1, 2)) for mask in masks.values()).long().tolist()


def finest(maps: dict[int, torch.Tensor]) -> torch.Tensor:
    return maps[min(maps)]


def assert_masks_tile(masks: dict[int, torch.Tensor], maps: dict[int, torch.Tensor]) -> None:
    assert list(masks) == sorted(maps)
    for side, mask in masks.items():
        assert mask.shape == maps[side].shape and mask.dtype == torch.float32
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert side == min(maps) or not mask[maps[side] >= PAD_VALUE].any(), "an incomplete cell was kept whole"
    grid = tuple(finest(maps).shape[1:])
    for tiling in tilings_of(masks):
        assert set(references.times_covered(tiling, grid).values()) == {1}
        assert sum(size**2 for _, _, size in tiling) == math.prod(grid), "a patch reaches out of the grid"


# -------------------------------------------------------------------- against the references


@given(maps=pyramids, data=st.data())
def test_v1_matches_the_reference(maps, data):
    thresholds = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 1.0, 2.0, 4.0, 9.0, 2e6]), min_size=3, max_size=3))
    thresholds = thresholds[: len(maps) - 1]
    masks = select_patches_by_threshold(maps, thresholds)
    assert_masks_tile(masks, maps)
    assert tilings_of(masks) == [references.select_v1(image, thresholds) for image in images_of(maps)]


@given(maps=pyramids, alpha=st.one_of(st.floats(0, 3), st.sampled_from([0, 0.5, 1, 1e9])))
def test_v2_matches_the_reference(maps, alpha):
    masks = select_patches_by_threshold_v2(maps, alpha)
    assert_masks_tile(masks, maps)
    assert tilings_of(masks) == [references.select_v2(image, alpha) for image in images_of(maps)]


@given(maps=pyramids, alpha=fractions, coarse_scores=st.booleans())
def test_budget_matches_a_greedy_heap(maps, alpha, coarse_scores):
    masks = select_patches_by_budget(maps, alpha, coarse_scores)
    assert_masks_tile(masks, maps)
    plan = plan_of_maps(maps, alpha)
    for tiling, image in zip(tilings_of(masks), images_of(maps), strict=True):
        expected, splits = references.select_budget(image, alpha, coarse_scores)
        assert tiling == expected
        assert plan.k == splits


@given(maps=pyramids, alpha=fractions, coarse_scores=st.booleans())
def test_joint_matches_a_search_over_every_set_of_children(maps, alpha, coarse_scores):
    masks = select_patches_jointly(maps, alpha, coarse_scores)
    assert_masks_tile(masks, maps)
    plan = plan_of_maps(maps, alpha)
    for tiling, image in zip(tilings_of(masks), images_of(maps), strict=True):
        expected, splits = references.select_joint(image, alpha, coarse_scores, int(TOKEN_PRICE))
        assert tiling == expected
        assert plan.k == splits


def joint_scores(maps: dict[int, torch.Tensor], coarse_scores: bool, compiled: bool) -> dict[int, torch.Tensor]:
    sides = sorted(maps)
    if not compiled:
        return patch_selection._joint_scores(maps, sides, coarse_scores)
    scores = tuple(np.empty(maps[side].shape) for side in sides[1:])
    prices = np.array(patch_selection._split_prices(len(sides)))
    arrays = tuple(maps[side].numpy() for side in sides)
    selection_kernels.joint_scores(arrays, PAD_VALUE, coarse_scores, prices, scores)
    return {side: torch.from_numpy(found) for side, found in zip(sides[1:], scores, strict=True)}


@pytest.mark.parametrize("compiled", [False, True])
@given(maps=pyramids, coarse_scores=st.booleans())
def test_joint_finds_no_child_worth_more_than_its_parent(compiled, maps, coarse_scores):
    assume(len(maps) > 2)
    scores = joint_scores(maps, coarse_scores, compiled)
    capped = 0
    for finer, side in itertools.pairwise(sorted(scores)):
        for image, row, col in (maps[finer] < PAD_VALUE).nonzero().tolist():
            parent = (image, row // 2, col // 2)
            if maps[side][parent] < PAD_VALUE:
                assert scores[finer][image, row, col] <= scores[side][parent]
                capped += 1
    assert capped or not any((maps[side] < PAD_VALUE).any() for side in sorted(maps)[2:])


@pytest.mark.parametrize("compiled", [False, True])
def test_joint_caps_a_child_at_its_parent_and_lowers_no_other(compiled):
    # Opening the first 56-px cell gains nothing by itself and costs 18 patches; one of its children then gains 4 · 9
    # for 3. With it the cell is worth 36 / 21. The second cell's own loss is worth 16 · 9 / 18, and its child's less.
    maps = {14: torch.zeros(1, 4, 8), 28: torch.zeros(1, 2, 4), 56: torch.zeros(1, 1, 2)}
    maps[28][0, 0, 0], maps[56][0, 0, 0] = 9.0, 36 / 16
    maps[28][0, 0, 2], maps[56][0, 0, 1] = 1.0, 9.0
    scores = joint_scores(maps, coarse_scores=True, compiled=compiled)
    assert scores[56][0, 0].tolist() == [36 / 21, (16 * 9 - 4) / 18]
    assert scores[28][0].tolist() == [[36 / 21, 0, 4 / 3, 0], [0, 0, 0, 0]]


def test_joint_refines_one_cell_where_budget_opens_two():
    # two 56-px cells: writing in two corners of the first, faint texture all over the second
    maps = {14: torch.zeros(1, 4, 8), 28: torch.zeros(1, 2, 4), 56: torch.tensor([[[30.0, 20.0]]])}
    maps[28][0, 0, :2] = torch.tensor([90.0, 16.0])
    three_splits = 11 / 32
    budget = tilings_of(select_patches_by_budget(maps, three_splits, coarse_scores=True))[0]
    joint = tilings_of(select_patches_jointly(maps, three_splits, coarse_scores=True))[0]
    assert (0, 2, 2) in budget and (0, 4, 4) not in budget, "opened, at three language tokens, for little"
    assert (0, 2, 2) not in joint and (0, 4, 4) in joint
    assert len(joint) == len(budget) == 11


# -------------------------------------------------------------------- what the rules promise


@given(select=budget_rules, maps=pyramids, alpha=fractions, coarse_scores=st.booleans())
def test_a_budget_is_met_exactly(select, maps, alpha, coarse_scores):
    h, w = finest(maps).shape[1:]
    candidates = sum(int((m[0] < PAD_VALUE).sum()) for side, m in maps.items() if side > min(maps))
    base_tokens = len(references.tile(images_of(maps)[0], lambda side, row, col: True))
    budget = round(alpha * h * w)
    k = max(0, (budget - base_tokens) // 3)
    expected = base_tokens + 3 * min(k, candidates)
    found = num_patches(select(maps, alpha, coarse_scores))
    assert found == [expected] * len(found)
    assert expected <= max(budget, base_tokens)
    assert plan_of_maps(maps, alpha).info() == {
        "base_tokens": base_tokens,
        "base_small_tokens": h * w,
        "budget": budget,
        "k": min(k, candidates),
        "alpha": alpha,
        "actual": expected,
    }


@given(select=budget_rules, maps=pyramids, coarse_scores=st.booleans())
def test_alpha_one_splits_everything(select, maps, coarse_scores):
    masks = select(maps, 1.0, coarse_scores)
    assert finest(masks).all()
    assert not any(mask.any() for side, mask in masks.items() if side > min(masks))
    assert num_patches(select(maps, 1, coarse_scores)) == num_patches(masks)


@given(select=budget_rules, maps=pyramids, alphas=st.tuples(fractions, fractions), coarse_scores=st.booleans())
def test_a_larger_budget_never_removes_a_split(select, maps, alphas, coarse_scores):
    fewer, more = (tilings_of(select(maps, alpha, coarse_scores)) for alpha in sorted(alphas))
    grid = tuple(finest(maps).shape[1:])
    for coarse, fine in zip(fewer, more, strict=True):
        for row, col, size in fine:
            # with nested splits every patch of the finer tiling lies inside one of the coarser tiling
            assert any(
                (row // 2**up * 2**up, col // 2**up * 2**up, 2**up) in coarse
                for up in range(size.bit_length() - 1, max(grid).bit_length() + 1)
            )


@given(maps=pyramids, alphas=st.tuples(st.floats(0, 3), st.floats(0, 3)))
def test_v2_never_gives_more_patches_for_a_larger_alpha(maps, alphas):
    low, high = sorted(alphas)
    few, many = (num_patches(select_patches_by_threshold_v2(maps, alpha)) for alpha in (high, low))
    assert all(a <= b for a, b in zip(few, many, strict=True))


@given(maps=pyramids, alpha=fractions)
def test_an_image_does_not_depend_on_its_batch(maps, alpha):
    for select in (
        lambda m: select_patches_by_threshold(m, [3.0, 2.0, 1.0][: len(maps) - 1]),
        lambda m: select_patches_by_threshold_v2(m, alpha),
        lambda m: select_patches_by_budget(m, alpha),
        lambda m: select_patches_by_budget(m, alpha, coarse_scores=True),
        lambda m: select_patches_jointly(m, alpha, coarse_scores=True),
    ):
        together = tilings_of(select(maps))
        for i, tiling in enumerate(together):
            assert tilings_of(select({side: m[i : i + 1] for side, m in maps.items()})) == [tiling]


# -------------------------------------------------------------------- worked examples


def test_the_worked_budget_example():
    plan = plan_budget((14, 14), 0.3)
    assert (plan.base_tokens, plan.budget, plan.k, plan.actual) == (22, 59, 12, 58)
    maps = random_maps(196, 196, 14, 3, batch=2, levels=0, seed=7)
    assert plan_of_maps(maps, 0.3) == plan
    assert num_patches(select_patches_by_budget(maps, 0.3)) == [58, 58]


@given(h=st.integers(1, 40), w=st.integers(1, 40), num_scales=st.integers(1, 4), alpha=fractions)
def test_a_plan_from_the_grid_is_the_plan_from_the_maps(h, w, num_scales, alpha):
    maps = random_maps(14 * h, 14 * w, 14, num_scales, batch=1, levels=1, seed=0)
    assert plan_budget((h, w), alpha, num_scales) == plan_of_maps(maps, alpha)


def test_a_childs_score_is_its_parents():
    # The left 56-cell is calm but for one wild 28-cell; the right one is busier on average. Propagation sends the
    # first split to the left, and the second one to the wild child itself.
    maps = random_maps(56, 112, 14, 3, batch=1, levels=1, seed=0)
    maps[14][..., :4] = 0.0
    maps[14][..., :2, :2] = 8.0
    maps[14][..., 4:] = 5.0
    one, two = (tilings_of(select_patches_by_budget(maps, patches / 32))[0] for patches in (5, 8))
    assert one == {(0, 4, 4), (0, 0, 2), (0, 2, 2), (2, 0, 2), (2, 2, 2)}
    assert two - one == {(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)}


def test_ties_go_to_the_coarser_cell_then_to_raster_order():
    maps = random_maps(112, 112, 14, 3, batch=1, levels=1, seed=0)  # all zero
    tilings = [tilings_of(select_patches_by_budget(maps, patches / 64))[0] for patches in (4, 7, 10, 13, 16, 19, 22)]
    splits = [before - after for before, after in itertools.pairwise(tilings)]
    assert splits == [{(0, 0, 4)}, {(0, 4, 4)}, {(4, 0, 4)}, {(4, 4, 4)}, {(0, 0, 2)}, {(0, 2, 2)}]


def test_coarse_scores_use_the_maps_own_values():
    maps = random_maps(56, 112, 14, 3, batch=1, levels=1, seed=0)
    maps[14][..., :4] = 8.0  # would win by means of the finest cells
    maps[56][..., 1] = 1.0
    assert (0, 4, 4) not in tilings_of(select_patches_by_budget(maps, 5 / 32, coarse_scores=True))[0]
    assert (0, 4, 4) in tilings_of(select_patches_by_budget(maps, 5 / 32))[0]
    maps[28][0, 0, 0] = 2.0  # a child's own value is propagated too
    assert (0, 0, 4) not in tilings_of(select_patches_by_budget(maps, 5 / 32, coarse_scores=True))[0]


def test_v1_thresholds_are_strict_and_finest_first():
    maps = random_maps(56, 56, 14, 3, batch=1, levels=1, seed=0)
    maps[28][:] = 3.0
    maps[56][:] = 2.0
    assert tilings_of(select_patches_by_threshold(maps, [3, 2.01]))[0] == {(0, 0, 4)}
    assert num_patches(select_patches_by_threshold(maps, [3.01, 2])) == [4]
    assert num_patches(select_patches_by_threshold(maps, (3, 2))) == [16]


def test_v2_takes_the_mean_of_complete_coarsest_cells_only():
    maps = random_maps(60, 112, 14, 3, batch=1, levels=1, seed=0)  # 56-cells: two whole, two sticking out
    maps[56][0, 0] = torch.tensor([1.0, 3.0])
    maps[28][0, :2] = 2.0
    assert num_patches(select_patches_by_threshold_v2(maps, 1.0)) == [1 + 16 + 8]  # threshold 2: strictly below
    assert num_patches(select_patches_by_threshold_v2(maps, 1.01)) == [1 + 4 + 8]
    assert num_patches(select_patches_by_threshold_v2(maps, 0.0)) == [40]


def test_v2_without_a_complete_coarsest_cell_uses_the_next_scale():
    maps = random_maps(28, 84, 14, 3, batch=1, levels=1, seed=0)
    maps[28][0, 0] = torch.tensor([1.0, 2.0, 6.0])
    assert tilings_of(select_patches_by_threshold_v2(maps, 1.0))[0] >= {(0, 0, 2), (0, 2, 2)}
    assert num_patches(select_patches_by_threshold_v2(maps, 1.0)) == [1 + 1 + 4]
    tiny = random_maps(20, 20, 14, 3, batch=1, levels=3, seed=0)
    assert num_patches(select_patches_by_threshold_v2(tiny, 9.0)) == [4]


# -------------------------------------------------------------------- the warning


@given(h=st.integers(1, 60), w=st.integers(1, 60), num_scales=st.integers(1, 4), alpha=st.floats(0, 1))
@example(h=14, w=14, num_scales=3, alpha=0.1)
@example(h=100, w=100, num_scales=3, alpha=0.0625)
def test_the_warning_names_an_alpha_that_can_be_met(h, w, num_scales, alpha):
    maps = random_maps(14 * h, 14 * w, 14, num_scales, batch=2, levels=1, seed=0)
    plan = plan_of_maps(maps, alpha)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        masks = select_patches_by_budget(maps, alpha)
    if plan.budget >= plan.base_tokens:
        assert not caught
        return
    assert len(caught) == 1, "one warning for the batch"
    text = str(caught[0].message)
    assert caught[0].category is UserWarning and caught[0].filename == __file__
    assert f"alpha={alpha}" in text and f"already has {plan.base_tokens}" in text
    named = float(re.search(r"can be met is (\S+)$", text)[1])
    assert 0 <= named <= 1
    assert plan_of_maps(maps, named).budget >= plan.base_tokens
    assert plan_of_maps(maps, max(0.0, named - 1e-4 - 1 / (h * w))).budget < plan.base_tokens, "nor much too large"
    assert num_patches(masks) == [plan.base_tokens] * 2


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize("method", ["v1", "v2", "budget", "joint"])
@pytest.mark.parametrize("alpha", [None, "0.3", True, [0.3]])
def test_alpha_is_a_number(method, alpha):
    with pytest.raises(TypeError, match=re.escape(f"alpha is a number, got {alpha!r} of type")):
        check_alpha(method, alpha)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_budget_wants_a_fraction(alpha):
    maps = random_maps(56, 56, 14, 3, batch=1, levels=3, seed=0)
    for call in (
        lambda: select_patches_by_budget(maps, alpha),
        lambda: plan_budget((4, 4), alpha),
        lambda: check_alpha("budget", alpha),
    ):
        with pytest.raises(ValueError, match=rf"alpha={alpha} with 'budget': expected 0 <= alpha <= 1"):
            call()


@pytest.mark.parametrize("alpha", [-0.01, math.nan, math.inf])
def test_v2_wants_a_finite_multiple(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha} with 'v2': expected a finite alpha >= 0.*fewer patches"):
        select_patches_by_threshold_v2(random_maps(56, 56, 14, 3, batch=1, levels=3, seed=0), alpha)
    check_alpha("v1", alpha)  # v1 has no use for it


@pytest.mark.parametrize(
    ("thresholds", "error", "message"),
    [
        ([3.0], ValueError, r"thresholds=\[3.0\] for 3 scales: expected 2 values"),
        ([3.0, 2.0, 1.0], ValueError, "from the finest up"),
        ([3.0, math.nan], ValueError, "holds NaN; expected numbers"),
        ("32", TypeError, "a list of numbers, got '32'"),
        (3.0, TypeError, "a list of numbers, got 3.0"),
        ([3.0, "2"], TypeError, "holds numbers, got '2'"),
        ([3.0, True], TypeError, "holds numbers, got True"),
    ],
)
def test_threshold_refusals(thresholds, error, message):
    with pytest.raises(error, match=message):
        check_thresholds(thresholds, 3)
    with pytest.raises(error, match=message):
        select_patches_by_threshold(random_maps(56, 56, 14, 3, batch=1, levels=3, seed=0), thresholds)


def test_thresholds_may_be_infinite_and_integers():
    assert check_thresholds((3, math.inf), 3) == [3.0, math.inf]
    assert check_thresholds([], 1) == []


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({}, "importance_maps is empty"),
        ({14: torch.zeros(1, 4, 4), 29: torch.zeros(1, 2, 2)}, r"importance_maps\[29\].*double from 14 px"),
        ({14: torch.zeros(1, 4, 4), 56: torch.zeros(1, 1, 1)}, r"importance_maps\[56\]"),
        ({14: torch.zeros(1, 5, 4), 28: torch.zeros(1, 2, 2)}, r"shape \(1, 2, 2\).*rounded up, from \(1, 5, 4\)"),
        ({14: torch.zeros(2, 4, 4), 28: torch.zeros(1, 2, 2)}, r"shape \(1, 2, 2\)"),
        ({14: torch.zeros(4, 4)}, r"importance_maps\[14\] has shape \(4, 4\)"),
    ],
)
def test_maps_that_form_no_pyramid_are_refused(maps, message):
    for select in (
        lambda: select_patches_by_threshold(maps, [1.0] * max(0, len(maps) - 1)),
        lambda: select_patches_by_threshold_v2(maps),
        lambda: select_patches_by_budget(maps),
    ):
        with pytest.raises(ValueError, match=message):
            select()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: compares its tilings with the CPU's")
@given(maps=pyramids, alpha=fractions)
def test_cuda_gives_the_same_tilings(maps, alpha):
    assume(len(maps) == 3)
    on_gpu = {side: m.cuda() for side, m in maps.items()}
    for select in (
        lambda m: select_patches_by_threshold(m, [3.0, 2.0]),
        lambda m: select_patches_by_threshold_v2(m, alpha),
        lambda m: select_patches_by_budget(m, alpha),
        lambda m: select_patches_by_budget(m, alpha, coarse_scores=True),
        lambda m: select_patches_jointly(m, alpha, coarse_scores=True),
    ):
        masks = select(on_gpu)
        assert all(mask.is_cuda for mask in masks.values())
        assert tilings_of(masks) == tilings_of(select(maps))
