"""The table of selection methods: its rows are all that the tokenizer knows of them."""

import pytest
import torch

from apt_code import PatchTokenizer
from apt_code.selection import BUDGETED, SELECTION_METHODS, SelectionMethod, check_alpha
from apt_code.selection.settings import check_fraction

IMAGES = torch.randint(0, 256, (2, 3, 112, 140), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def test_the_table():
    assert list(SELECTION_METHODS) == ["v1", "v2", "budget", "joint"]
    assert BUDGETED == ("budget", "joint")
    assert {name: sorted(method.reads) for name, method in SELECTION_METHODS.items()} == {
        "v1": ["importance_method", "thresholds"],
        "v2": ["alpha", "importance_method"],
        "budget": ["alpha", "importance_method"],
        "joint": ["alpha", "importance_method"],
    }


def test_a_row_is_enough(monkeypatch):
    def rule_either(maps, thresholds, alpha):
        """Everything coarse where alpha is above the first threshold."""
        coarse = alpha > thresholds[0]
        return {side: torch.full_like(maps[side], coarse, dtype=torch.bool) for side in sorted(maps)[1:]}

    row = SelectionMethod(rule_either, frozenset({"thresholds", "alpha"}), check_fraction)
    monkeypatch.setitem(SELECTION_METHODS, "either", row)
    for alpha, sizes in ((0.4, {1: 80}), (0.6, {2: 4, 4: 4})):
        tokenizer = PatchTokenizer(patch_selection_method="either", alpha=alpha, thresholds=[0.5, 0.5])
        for layout in [*tokenizer(IMAGES).layouts, *tokenizer.select_layouts(IMAGES)]:
            assert layout.patches_by_size == sizes
        assert tokenizer.last_budget_info is None
    with pytest.raises(ValueError, match="alpha=2 with 'either': expected 0 <= alpha <= 1"):
        PatchTokenizer(patch_selection_method="either", alpha=2)


def test_a_budgeted_row_gets_its_plan(monkeypatch):
    def rule_nothing(maps, plan, coarse_scores):
        assert plan.alpha == 0.5 and coarse_scores is False
        return {side: torch.zeros_like(maps[side], dtype=torch.bool) for side in sorted(maps)[1:]}

    row = SelectionMethod(rule_nothing, frozenset({"importance_method", "alpha"}), check_fraction, budgeted=True)
    monkeypatch.setitem(SELECTION_METHODS, "nothing", row)
    tokenizer = PatchTokenizer()
    masks, _, _ = tokenizer.construct_masks(tokenizer.compute_importance_maps(IMAGES), "nothing", 0.5)
    assert masks[14].all() and tokenizer.last_budget_info["budget"] == 40


def test_a_method_that_is_not_in_the_table_has_no_range():
    check_alpha("off", 7)
    with pytest.raises(TypeError, match="alpha is a number, got '7'"):
        check_alpha("off", "7")
