"""What all rules promise, as properties over random grids."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from apt_code.importance.common import PAD_VALUE
from apt_code.selection.budget import select_patches_by_budget
from apt_code.selection.joint import select_patches_jointly
from apt_code.selection.plan import plan_of_maps
from apt_code.selection.v1 import select_patches_by_threshold
from apt_code.selection.v2 import select_patches_by_threshold_v2
from tests.apt_code import references
from tests.apt_code.selection.material import (
    budget_rules,
    finest,
    fractions,
    images_of,
    num_patches,
    pyramids,
    tilings_of,
)

# Random grids often have a coarsest tiling above the budget; the warning has its own tests.
pytestmark = pytest.mark.filterwarnings("ignore:alpha=:UserWarning")


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


@pytest.mark.cuda
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
