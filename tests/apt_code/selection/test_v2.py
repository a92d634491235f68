"""Rule `v2` against a slow reference; its mean is exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code.importance.common import PAD_VALUE
from apt_code.selection.v2 import rule_v2, select_patches_by_threshold_v2
from tests.apt_code import references
from tests.apt_code.references import random_maps
from tests.apt_code.selection.material import assert_masks_tile, images_of, num_patches, pyramids, tilings_of


@given(maps=pyramids, alpha=st.one_of(st.floats(0, 3), st.sampled_from([0, 0.5, 1, 1e9])))
def test_v2_matches_the_reference(maps, alpha):
    masks = select_patches_by_threshold_v2(maps, alpha)
    assert_masks_tile(masks, maps)
    assert tilings_of(masks) == [references.select_v2(image, alpha) for image in images_of(maps)]


@given(maps=pyramids, alphas=st.tuples(st.floats(0, 3), st.floats(0, 3)))
def test_v2_never_gives_more_patches_for_a_larger_alpha(maps, alphas):
    low, high = sorted(alphas)
    few, many = (num_patches(select_patches_by_threshold_v2(maps, alpha)) for alpha in (high, low))
    assert all(a <= b for a, b in zip(few, many, strict=True))


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


def two_levels(side: int, low: float, high: float) -> dict[int, torch.Tensor]:
    """Maps of `side × side` coarse cells, one half of them of each importance."""
    coarse = torch.full((1, side, side), low)
    coarse[:, ::2, 1::2] = coarse[:, 1::2, ::2] = high
    return {1: torch.zeros(1, 1, 1).expand(1, 2 * side, 2 * side), 2: coarse}


@pytest.mark.parametrize(
    ("side", "low", "high"),
    [(2000, 1018.0, 1020.0), (300, 65_000.0, 65_025.0), (46, 999_990.0, 999_999.0), (48, 999_990.0, 999_999.0)],
)
def test_v2_of_many_cells_of_high_importance(side, low, high):
    # at alpha = 1 the threshold is the mean, which lies between the two
    maps = two_levels(side, low, high)
    assert torch.equal(rule_v2(maps, 1.0)[2], maps[2] == low)


@given(side=st.sampled_from([4, 46, 47, 60]), seed=st.integers(0, 99))
def test_v2_does_not_depend_on_the_order_of_cells(side, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = two_levels(side, 0.0, 0.0)
    maps[2] = torch.rand((1, side, side), generator=generator) * 10.0 ** torch.randint(-3, 6, (1, side, side))
    order = torch.randperm(side * side, generator=generator)
    shuffled = {1: maps[1], 2: maps[2].flatten(1)[:, order].view_as(maps[2])}
    # a threshold at a cell's own value splits at the last bit of the mean
    mean = math.fsum(maps[2].flatten().tolist()) / side**2
    for value in maps[2].flatten()[:5].tolist():
        expected = rule_v2(maps, value / mean)[2].flatten()[order]
        assert torch.equal(rule_v2(shuffled, value / mean)[2].flatten(), expected)


def test_the_edge_of_one_sum_in_v2():
    """47² cells below the padding are the first that 64 bits of fixed point cannot sum."""
    assert 46**2 * PAD_VALUE * 2**32 < 2**63 <= 47**2 * PAD_VALUE * 2**32
