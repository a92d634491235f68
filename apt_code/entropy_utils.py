"""Importance maps and rules under the names of the founding documents.

`apt_code.importance` and `apt_code.selection` have them, one map and one rule a file.
"""

from apt_code.importance import IMPORTANCE_METHODS, ImportanceMethod, threshold_warning
from apt_code.importance.common import PAD_VALUE, are_grey_levels
from apt_code.importance.entropy import BINS, compute_patch_entropy_batched
from apt_code.importance.laplacian import compute_patch_laplacian_batched
from apt_code.importance.upsample_l4 import compute_patch_upsample_l4_batched
from apt_code.importance.upsample_mse import compute_patch_upsample_mse_batched
from apt_code.selection.budget import select_patches_by_budget
from apt_code.selection.v1 import select_patches_by_threshold
from apt_code.selection.v2 import select_patches_by_threshold_v2

__all__ = [
    "BINS",
    "IMPORTANCE_METHODS",
    "PAD_VALUE",
    "ImportanceMethod",
    "are_grey_levels",
    "compute_patch_entropy_batched",
    "compute_patch_laplacian_batched",
    "compute_patch_upsample_l4_batched",
    "compute_patch_upsample_mse_batched",
    "select_patches_by_budget",
    "select_patches_by_threshold",
    "select_patches_by_threshold_v2",
    "threshold_warning",
]
