"""What a budget comes to, from the grid and from the maps, and the warning of one that cannot be met."""

import re
import warnings

from hypothesis import example, given
from hypothesis import strategies as st

from apt_code.selection.budget import select_patches_by_budget
from apt_code.selection.plan import plan_budget, plan_of_maps
from tests.apt_code.references import random_maps
from tests.apt_code.selection.material import fractions, num_patches


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
