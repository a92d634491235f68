"""Random importance maps, and tilings in the form that the references have."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from apt_code.importance.common import PAD_VALUE
from apt_code.selection.budget import select_patches_by_budget
from apt_code.selection.joint import select_patches_jointly
from apt_code.selection.plan import plan_of_maps
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


def assert_found_by_search(
    masks: dict[int, torch.Tensor], maps: dict[int, torch.Tensor], alpha: float, search
) -> None:
    """The masks of a budget, against a search that gives an image's `(tiling, number of splits)`."""
    assert_masks_tile(masks, maps)
    plan = plan_of_maps(maps, alpha)
    for tiling, image in zip(tilings_of(masks), images_of(maps), strict=True):
        expected, splits = search(image)
        assert tiling == expected
        assert plan.k == splits
