"""Selection under the names of the founding documents: `apt_code.selection` has it, one rule a file."""

from apt_code.importance.common import PAD_VALUE
from apt_code.selection.budget import rule_budget, select_patches_by_budget
from apt_code.selection.joint import TOKEN_PRICE, rule_joint, select_patches_jointly
from apt_code.selection.plan import BudgetPlan, plan_budget, plan_of_maps, plan_of_size
from apt_code.selection.tiling import lay_out, tile
from apt_code.selection.v1 import rule_v1, select_patches_by_threshold
from apt_code.selection.v2 import rule_v2, select_patches_by_threshold_v2

__all__ = [
    "PAD_VALUE",
    "TOKEN_PRICE",
    "BudgetPlan",
    "lay_out",
    "plan_budget",
    "plan_of_maps",
    "plan_of_size",
    "rule_budget",
    "rule_joint",
    "rule_v1",
    "rule_v2",
    "select_patches_by_budget",
    "select_patches_by_threshold",
    "select_patches_by_threshold_v2",
    "select_patches_jointly",
    "tile",
]
