"""What alpha and thresholds can be."""

import math
import re

import pytest

from apt_code.selection import check_alpha
from apt_code.selection.budget import select_patches_by_budget
from apt_code.selection.plan import plan_budget
from apt_code.selection.settings import check_thresholds
from apt_code.selection.v1 import select_patches_by_threshold
from apt_code.selection.v2 import select_patches_by_threshold_v2
from tests.apt_code.references import random_maps


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
