"""The entropy map against a naive histogram in exact arithmetic."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code.importance.common import PAD_VALUE
from apt_code.importance.entropy import compute_patch_entropy_batched
from tests.apt_code import references
from tests.apt_code.references import assert_same_maps, picture


def naive(image: torch.Tensor, side: int, bins: int = 512) -> np.ndarray:
    return references.importance_map(
        image, side, lambda pixels, top, left: references.entropy_of_cell(pixels, top, left, side, bins)
    )


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    patch_size=st.integers(3, 7),
    num_scales=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    bins=st.sampled_from([1, 7, 64, 256, 512]),
    seed=st.integers(0, 2**16),
)
def test_matches_a_naive_histogram(height, width, patch_size, num_scales, channels, bins, seed):
    image = picture(height, width, channels, seed)
    maps = compute_patch_entropy_batched(image[None], patch_size, num_scales, bins)
    assert list(maps) == [patch_size * 2**scale for scale in range(num_scales)]
    for side, found in maps.items():
        assert found.dtype == torch.float32
        expected = naive(image, side, bins)
        assert found.shape == (1, *expected.shape)
        # 1e-6: half a float32 ulp at 9 bits is 5e-7
        np.testing.assert_allclose(found[0].double().numpy(), expected, rtol=0, atol=1e-6)


def test_qwen_scales_match_direct_histograms_of_the_large_cells():
    image = picture(130, 118, seed=3)
    maps = compute_patch_entropy_batched(image[None], patch_size=14)
    assert {side: tuple(found.shape) for side, found in maps.items()} == {
        14: (1, 10, 9),
        28: (1, 5, 5),
        56: (1, 3, 3),
    }
    for side in (28, 56):
        np.testing.assert_allclose(maps[side][0].double().numpy(), naive(image, side), rtol=0, atol=1e-6)


def test_float_pixels_are_binned_exactly():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 24, 24, generator=generator) * 300 - 20  # beyond both ends of the histogram
    image[:, :8, :8] = image[:, :8, :8].round()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        converted = image.to(dtype)
        for side, found in compute_patch_entropy_batched(converted[None], 6, 2).items():
            np.testing.assert_allclose(found[0].double().numpy(), naive(converted, side), rtol=0, atol=1e-6)


def test_bin_edges_and_values_beyond_them():
    # The weights add up to 0.9999, so of 5 bins of 51 levels the first ends between the pixels 51 and 52.
    levels = torch.tensor([[0, 51, 52, 255]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    entropy = compute_patch_entropy_batched(levels, 2, 1, bins=5)[2].item()
    assert entropy == pytest.approx(1.5, abs=1e-6)  # {0, 51}, {52}, {255}
    beyond = torch.tensor([[-3.0, 0.0, 255.1, 900.0]]).reshape(1, 1, 2, 2)
    assert compute_patch_entropy_batched(beyond, 2, 1, bins=5)[2].item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("patch_size", [14, 16, 5])
def test_a_flat_cell_has_exactly_no_entropy(patch_size):
    # exactly, because v2 compares with a multiple of a mean that may be 0 itself
    image = torch.full((1, 3, 8 * patch_size, 8 * patch_size), 77, dtype=torch.uint8)
    for found in compute_patch_entropy_batched(image, patch_size, 4).values():
        assert not found.any()


def test_all_pixels_different_reach_the_upper_bound():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert compute_patch_entropy_batched(image, 16, 1)[16].item() == 8.0
    spread = torch.linspace(0, 255, 64 * 64).reshape(1, 1, 64, 64)
    entropy = compute_patch_entropy_batched(spread, 64, 1)[64].item()
    assert math.log2(512) - 0.01 < entropy <= math.log2(512)


@given(height=st.integers(1, 130), width=st.integers(1, 130), patch_size=st.sampled_from([14, 16]))
def test_cells_that_stick_out_hold_pad_value_and_no_other_do(height, width, patch_size):
    maps = compute_patch_entropy_batched(picture(height, width)[None], patch_size, 3, pad_value=-5.0)
    for side, found in maps.items():
        assert found.shape == (1, math.ceil(height / side), math.ceil(width / side))
        sticks_out = torch.ones(found.shape[1:], dtype=torch.bool)
        sticks_out[: height // side, : width // side] = False
        assert torch.equal(found[0] == -5.0, sticks_out)
    assert PAD_VALUE == 1e6


@given(height=st.integers(14, 90), width=st.integers(14, 90), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_image_does_not_depend_on_its_batch(height, width, batch, seed):
    images = torch.stack([picture(height, width, seed=seed + i) for i in range(batch)])
    together = compute_patch_entropy_batched(images)
    for i in range(batch):
        assert_same_maps(
            {side: found[i : i + 1] for side, found in together.items()},
            compute_patch_entropy_batched(images[i : i + 1]),
        )


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.float16, torch.float32, torch.float64])
def test_the_same_values_in_another_dtype_give_the_same_bits(dtype):
    image = picture(75, 61)[None]
    assert_same_maps(compute_patch_entropy_batched(image.to(dtype)), compute_patch_entropy_batched(image))


def test_one_channel_is_three_equal_ones():
    image = picture(60, 60, channels=1)[None]
    assert_same_maps(compute_patch_entropy_batched(image), compute_patch_entropy_batched(image.expand(-1, 3, -1, -1)))


def test_memory_layout_does_not_matter():
    images = torch.stack([picture(64, 57, seed=seed) for seed in range(2)])
    expected = compute_patch_entropy_batched(images)
    strided = torch.zeros(2, 3, 128, 114, dtype=torch.uint8)[..., ::2, ::2].copy_(images)
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (images.contiguous(memory_format=torch.channels_last), strided, transposed):
        assert view.stride() != images.stride()
        assert_same_maps(compute_patch_entropy_batched(view), expected)


def test_input_is_left_alone():
    image = picture(30, 30)[None].float()
    before = image.clone()
    compute_patch_entropy_batched(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 28, 28), {}, r"got \(3, 28, 28\); convert to RGB"),
        (torch.zeros(1, 4, 28, 28), {}, r"1 or 3 channels, got \(1, 4, 28, 28\)"),
        (torch.zeros(1, 28, 28, 3), {}, "channels first"),
        (torch.zeros(0, 3, 28, 28), {}, r"at least one image.*got \(0, 3, 28, 28\)"),
        (torch.full((1, 3, 28, 28), math.nan), {}, "NaN or infinite pixels; expected finite"),
        (torch.full((1, 3, 28, 28), math.inf), {}, "NaN or infinite"),
        (torch.zeros(1, 3, 28, 28), {"patch_size": 0}, "patch_size and num_scales are at least 1, got 0 and 3"),
        (torch.zeros(1, 3, 28, 28), {"num_scales": 0}, "got 16 and 0"),
        (torch.zeros(1, 3, 28, 28), {"bins": 0}, "bins is at least 1, got 0"),
    ],
)
def test_refusals_name_the_value(images, options, message):
    with pytest.raises(ValueError, match=message):
        compute_patch_entropy_batched(images, **options)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cuda_gives_the_same_bits(dtype):
    images = torch.stack([picture(130, 118, seed=seed) for seed in range(3)]).to(dtype)
    on_gpu = compute_patch_entropy_batched(images.cuda(), num_scales=4)
    assert all(found.is_cuda for found in on_gpu.values())
    assert_same_maps({k: v.cpu() for k, v in on_gpu.items()}, compute_patch_entropy_batched(images, num_scales=4))
