"""Rule `budget` against a greedy heap, one split at a time."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_code.selection.budget import select_patches_by_budget
from tests.apt_code import references
from tests.apt_code.references import random_maps
from tests.apt_code.selection.material import (
    assert_found_by_search,
    fractions,
    pyramids,
    tilings_of,
)

# Random grids often have a coarsest tiling above the budget; the warning has its own tests.
pytestmark = pytest.mark.filterwarnings("ignore:alpha=:UserWarning")


@given(maps=pyramids, alpha=fractions, coarse_scores=st.booleans())
def test_budget_matches_a_greedy_heap(maps, alpha, coarse_scores):
    masks = select_patches_by_budget(maps, alpha, coarse_scores)
    assert_found_by_search(masks, maps, alpha, lambda image: references.select_budget(image, alpha, coarse_scores))


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
