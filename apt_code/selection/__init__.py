"""Which cells are kept whole: the selection rules over importance maps, and the tilings that they make.

Axis legend: `b` images of one shape, `h w` base grid. Importance maps and masks are `{cell side in px: (b, rows,
cols)}`, sides doubling from the base patch up, grids rounded up. A cell of importance `PAD_VALUE` or more sticks out
of the image: it is always split. A mask holds 1 where a patch of that side is part of the tiling; together the masks
cover every base cell once.

A new rule is one file here and one row in `SELECTION_METHODS`; its compiled form, where it has one, lies beside it and
is imported where it is used, since numba may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from apt_code.selection.budget import rule_budget
from apt_code.selection.joint import rule_joint
from apt_code.selection.settings import check_fraction, check_multiple, check_number
from apt_code.selection.v1 import rule_v1
from apt_code.selection.v2 import rule_v2


@dataclass(frozen=True)
class SelectionMethod:
    """One row of the table of selection methods.

    Args:
        rule: `(maps, …)` -> `{side: (b, rows, cols)}` bool for each coarse side: where it would keep a cell whole. It
            takes the thresholds and the alpha that it reads by these names; a budgeted one takes `plan`, which has
            its alpha, and `coarse_scores`.
        reads: which of the settings `importance_method`, `thresholds` and `alpha` it reads.
        check_alpha: `(name of the method, alpha)`, by what alpha means to it; raises where that is not possible.
        budgeted: whether alpha is the fraction of patches to keep.
    """

    rule: Callable[..., dict[int, Tensor]]
    reads: frozenset[str]
    check_alpha: Callable[[str, float], None] = check_number
    budgeted: bool = False


SELECTION_METHODS: Mapping[str, SelectionMethod] = {
    "v1": SelectionMethod(rule_v1, frozenset({"importance_method", "thresholds"})),
    "v2": SelectionMethod(rule_v2, frozenset({"importance_method", "alpha"}), check_multiple),
    "budget": SelectionMethod(rule_budget, frozenset({"importance_method", "alpha"}), check_fraction, budgeted=True),
    "joint": SelectionMethod(rule_joint, frozenset({"importance_method", "alpha"}), check_fraction, budgeted=True),
}

BUDGETED = tuple(name for name, method in SELECTION_METHODS.items() if method.budgeted)
"""The methods whose alpha is the fraction of patches to keep."""


def check_alpha(method: str, alpha: float) -> None:
    """Refuse an alpha that `method` cannot use.

    Raises:
        TypeError: not a number. ValueError: outside the method's range.
    """
    check = SELECTION_METHODS[method].check_alpha if method in SELECTION_METHODS else check_number
    check(method, alpha)
