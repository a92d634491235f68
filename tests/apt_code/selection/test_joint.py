"""Rule `joint` against a search over every set of children."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from apt_code.importance.common import PAD_VALUE
from apt_code.selection import joint, joint_kernel
from apt_code.selection.budget import select_patches_by_budget
from apt_code.selection.joint import TOKEN_PRICE, select_patches_jointly
from tests.apt_code import references
from tests.apt_code.selection.material import (
    assert_found_by_search,
    fractions,
    pyramids,
    tilings_of,
)

# Random grids often have a coarsest tiling above the budget; the warning has its own tests.
pytestmark = pytest.mark.filterwarnings("ignore:alpha=:UserWarning")


@given(maps=pyramids, alpha=fractions, coarse_scores=st.booleans())
def test_joint_matches_a_search_over_every_set_of_children(maps, alpha, coarse_scores):
    masks = select_patches_jointly(maps, alpha, coarse_scores)
    assert_found_by_search(
        masks, maps, alpha, lambda image: references.select_joint(image, alpha, coarse_scores, int(TOKEN_PRICE))
    )


def joint_scores(maps: dict[int, torch.Tensor], coarse_scores: bool, compiled: bool) -> dict[int, torch.Tensor]:
    sides = sorted(maps)
    if not compiled:
        return joint._joint_scores(maps, sides, coarse_scores)
    scores = tuple(np.empty(maps[side].shape) for side in sides[1:])
    prices = np.array(joint._split_prices(len(sides)))
    arrays = tuple(maps[side].numpy() for side in sides)
    joint_kernel.joint_scores(arrays, PAD_VALUE, coarse_scores, prices, scores)
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
