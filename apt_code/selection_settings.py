"""What a selection can be asked for, under the names of before: `apt_code.selection` has it."""

from apt_code.selection import BUDGETED, SELECTION_METHODS, check_alpha
from apt_code.selection.settings import check_thresholds

__all__ = ["BUDGETED", "SELECTION_METHODS", "check_alpha", "check_thresholds"]
