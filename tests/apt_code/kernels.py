"""Every compiled kernel, as `(module, function)`: what fails, and what is counted, in the tests."""

from apt_code import dropping_kernel, patch_packing_kernel
from apt_code.importance import entropy_kernel, upsampling_kernel
from apt_code.selection import best_splits_kernel, budget_kernel, joint_kernel, tiling_kernel

KERNELS = [
    (entropy_kernel, "entropies"),
    (upsampling_kernel, "upsampling_losses"),
    (patch_packing_kernel, "gather_rows"),
    (budget_kernel, "split_scores"),
    (joint_kernel, "joint_scores"),
    (best_splits_kernel, "keep_all_but_best"),
    (tiling_kernel, "canonical_patches"),
    (dropping_kernel, "keep_unlike"),
    (dropping_kernel, "walk_units"),
]
