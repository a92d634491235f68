"""The table of importance maps, and what is said of thresholds out of a map's reach."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code.importance import (
    IMPORTANCE_METHODS,
    threshold_warning,
)
from apt_code.importance.entropy import compute_patch_entropy_batched
from apt_code.importance.laplacian import compute_patch_laplacian_batched
from apt_code.importance.upsample_l4 import compute_patch_upsample_l4_batched
from apt_code.importance.upsample_mse import compute_patch_upsample_mse_batched

METHODS = {
    "laplacian": compute_patch_laplacian_batched,
    "upsample_l4": compute_patch_upsample_l4_batched,
    "upsample_mse": compute_patch_upsample_mse_batched,
}


def test_the_table_of_methods():
    assert set(IMPORTANCE_METHODS) == {"entropy", *METHODS}
    entropy = IMPORTANCE_METHODS["entropy"]
    assert entropy.compute is compute_patch_entropy_batched
    assert [entropy.thresholds(scales) for scales in (1, 2, 3, 4)] == [[], [3.0], [3.0, 2.0], [3.0, 2.0, 2.0]]
    assert not entropy.coarse_scores
    assert not IMPORTANCE_METHODS["laplacian"].coarse_scores
    assert IMPORTANCE_METHODS["upsample_l4"].thresholds(4) == [50.0, 50.0, 50.0]
    for method in ("upsample_l4", "upsample_mse"):
        assert IMPORTANCE_METHODS[method].coarse_scores, "its finest map is 0: means of it would say nothing"
    for method, compute in METHODS.items():
        assert IMPORTANCE_METHODS[method].compute is compute


@pytest.mark.parametrize("method", IMPORTANCE_METHODS)
@given(
    patch_size=st.integers(1, 8),
    levels=st.sampled_from([2, 3, 256]),
    kind=st.sampled_from(["noise", "board", "ramp"]),
    bins=st.sampled_from([1, 4, 512]),
    seed=st.integers(0, 999),
)
def test_no_importance_is_above_the_highest(method, patch_size, levels, kind, bins, seed):
    side = patch_size * 8
    if kind == "noise":
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, levels, (1, 3, side, side), generator=generator) * (255 // (levels - 1))
    elif kind == "board":
        images = torch.arange(side).view(-1, 1).add(torch.arange(side)).remainder(2).mul(255).expand(1, 3, -1, -1)
    else:
        images = torch.arange(side * side).mul(255 * seed).remainder(256).view(1, 1, side, side)
    row = IMPORTANCE_METHODS[method]
    options = {"bins": bins} if method == "entropy" else {}
    for cell, found in row.compute(images.to(torch.uint8), patch_size, 4, **options).items():
        highest = torch.tensor(row.highest(cell, bins), dtype=found.dtype)  # rounded as the map is: log2(36) goes up
        assert found.max() <= highest, (method, cell)


def test_the_highest_importance_is_reached_where_it_can_be():
    assert IMPORTANCE_METHODS["entropy"].highest(28, 512) == 9
    assert IMPORTANCE_METHODS["entropy"].highest(16, 512) == 8
    assert compute_patch_entropy_batched(torch.arange(256).view(1, 1, 16, 16), 16, 1)[16].item() == 8
    assert IMPORTANCE_METHODS["laplacian"].highest(28, 512) == 1020
    for method in ("upsample_l4", "upsample_mse"):
        assert IMPORTANCE_METHODS[method].highest(28, 512) == 65025


@pytest.mark.parametrize(
    ("thresholds", "method", "options", "named"),
    [
        ([36.0, 36.0], "entropy", {}, ["36 at 28 px (highest importance there: 9)", "36 at 56 px"]),
        ([3.0, 9.01], "entropy", {}, ["9.01 at 56 px (highest importance there: 9)"]),
        ([9.0, 9.0], "entropy", {}, []),
        ([3.0, math.inf], "entropy", {}, []),
        ([math.inf, 36.0], "entropy", {}, ["36 at 56 px"]),
        ([-math.inf, -1.0], "entropy", {}, []),
        ([3.0, 2.0], "entropy", {"bins": 4}, ["3 at 28 px (highest importance there: 2)"]),
        ([8.1], "entropy", {"base_patch_size": 8}, ["8.1 at 16 px (highest importance there: 8)"]),
        ([1020.0, 1021.0], "laplacian", {}, ["1021 at 56 px (highest importance there: 1020)"]),
        ([65025.0, 65026.0], "upsample_mse", {}, ["65026 at 56 px (highest importance there: 6.502e+04)"]),
        ([36.0, 36.0], "upsample_mse", {}, []),
        ([65026.0, 50.0], "upsample_l4", {}, ["65026 at 28 px (highest importance there: 6.502e+04)"]),
        ([50.0, 50.0], "upsample_l4", {}, []),
        ([], "entropy", {}, []),
    ],
)
def test_thresholds_that_keep_every_cell_whole_are_named(thresholds, method, options, named):
    text = threshold_warning(tuple(thresholds), method, **{"base_patch_size": 14, **options})
    if not named:
        assert text is None
        return
    assert text.startswith(f"thresholds={thresholds} with the importance map {method!r}, in ")
    assert all(name in text for name in named) and text.count("highest importance there") == len(named)
    for remedy in ("Lower the thresholds (default [", "importance_method", "float('inf')"):
        assert remedy in text


def test_the_default_thresholds_are_within_reach():
    for method, row in IMPORTANCE_METHODS.items():
        for base_patch_size in (14, 16):
            assert threshold_warning(tuple(row.thresholds(4)), method, base_patch_size) is None
