"""The compiled kernels give the bits of the plain code, and are not needed."""

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from apt_code import entropy_utils
from apt_code.entropy_utils import compute_patch_entropy_batched, compute_patch_upsample_mse_batched

COMPILED_MAPS = (compute_patch_entropy_batched, compute_patch_upsample_mse_batched)


def plain(compute, *args, **kwargs):
    """The same map without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_utils, "_can_compile", lambda images: False)
        return compute(*args, **kwargs)


def assert_equal(compute, images, **options):
    compiled, expected = compute(images, **options), plain(compute, images, **options)
    assert compiled.keys() == expected.keys()
    for side in expected:
        assert torch.equal(compiled[side], expected[side]), (compute.__name__, side, images.shape, options)


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
    for bins in (1, 7, 512, 4096):
        assert_equal(compute_patch_entropy_batched, images, patch_size=14, num_scales=3, bins=bins)


def test_only_bytes_in_host_memory_are_compiled():
    images = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    assert entropy_utils._can_compile(images)
    assert not entropy_utils._can_compile(images.float())
    assert not entropy_utils._can_compile(images.to("meta"))


def test_without_numba_everything_works_and_one_debug_line_says_so():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["numba"] = None
        import torch
        from loguru import logger
        from apt_code import PatchTokenizer
        logger.remove()
        logger.add(sys.stdout, level="DEBUG", format="{message}")
        logger.enable("apt_code")
        images = torch.arange(3 * 56 * 56, dtype=torch.int64).reshape(1, 3, 56, 56).remainder(256).to(torch.uint8)
        for _ in range(3):
            print(len(PatchTokenizer(patch_selection_method="budget", alpha=0.5)(images).patches), "patches")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("7 patches") == 3
    assert done.stdout.count("pip install numba") == 1
