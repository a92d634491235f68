"""A map by its kernel beside the same map by the plain code."""

import pytest
import torch

from apt_code.importance import entropy, losses
from apt_code.importance.entropy import compute_patch_entropy_batched
from apt_code.importance.upsample_l4 import compute_patch_upsample_l4_batched
from apt_code.importance.upsample_mse import compute_patch_upsample_mse_batched

COMPILED_MAPS = (
    compute_patch_entropy_batched,
    compute_patch_upsample_mse_batched,
    compute_patch_upsample_l4_batched,
)


def plain(compute, *args, **kwargs):
    """The same map without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (entropy, losses):
            patch.setattr(module, "can_compile", lambda images: False)
        return compute(*args, **kwargs)


def assert_equal(compute, images, **options):
    compiled, expected = compute(images, **options), plain(compute, images, **options)
    assert compiled.keys() == expected.keys()
    for side in expected:
        assert torch.equal(compiled[side], expected[side]), (compute.__name__, side, images.shape, options)
