"""The compiled maps give the bits of the plain code."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from apt_code.importance.entropy import compute_patch_entropy_batched
from tests.apt_code.importance.comparison import COMPILED_MAPS, assert_equal


@pytest.mark.parametrize("compute", COMPILED_MAPS)
@pytest.mark.parametrize("name", ["astronaut", "page", "moon"])
def test_on_real_photos(compute, name):
    pixels = torch.from_numpy(getattr(data, name)().copy())
    image = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    assert_equal(compute, image[None], patch_size=14, num_scales=3)


@given(
    shape=st.tuples(st.integers(1, 2), st.sampled_from([1, 3]), st.integers(1, 90), st.integers(1, 90)),
    patch_size=st.sampled_from([1, 2, 5, 14, 16]),
    num_scales=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 1000),
)
def test_on_any_size(shape, patch_size, num_scales, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator) * (255 // max(levels - 1, 1))
    for compute in COMPILED_MAPS:
        assert_equal(compute, images, patch_size=patch_size, num_scales=num_scales)


def test_other_numbers_of_bins():
    images = torch.randint(0, 256, (1, 3, 56, 84), dtype=torch.uint8)
    for bins in (1, 7, 512, 1684, 1685, 4096):
        assert_equal(compute_patch_entropy_batched, images, patch_size=14, num_scales=3, bins=bins)
