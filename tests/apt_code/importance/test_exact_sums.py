"""No sum behind a map overflows for any argument that is accepted."""

import itertools

import numpy as np
import pytest
import torch

from apt_code import PatchTokenizer
from apt_code.importance import (
    IMPORTANCE_METHODS,
    entropy,
    entropy_kernel,
    upsampling_kernel,
)
from apt_code.importance.common import PAD_VALUE
from apt_code.importance.entropy import compute_patch_entropy_batched
from apt_code.importance.laplacian import compute_patch_laplacian_batched
from apt_code.importance.upsample_l4 import compute_patch_upsample_l4_batched
from apt_code.importance.upsample_mse import compute_patch_upsample_mse_batched
from tests.apt_code.importance.comparison import assert_equal, plain
from tests.apt_code.references import assert_same_maps


def worst_cells(side: int, channels: int = 3) -> list[torch.Tensor]:
    """White; a chessboard, whose error is the largest known; noise; and a lonely white half."""
    board = torch.zeros(1, channels, side, side, dtype=torch.uint8)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = 255
    half = torch.zeros_like(board)
    half[..., side // 2 :] = 255
    noise = torch.randint(0, 2, board.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8) * 255
    return [torch.full_like(board, 255), board, noise, half]


def test_upsample_mse_of_128_px_patches_in_four_scales():
    white, board, noise, _ = worst_cells(1024)
    maps = compute_patch_upsample_mse_batched(board, 128, 4)
    assert all(torch.equal(maps[side], torch.full_like(maps[side], 127.5**2)) for side in (256, 512, 1024))
    assert not any(found.any() for found in compute_patch_upsample_mse_batched(white, 128, 4).values())
    found = compute_patch_upsample_mse_batched(noise, 128, 4)
    assert_same_maps(found, plain(compute_patch_upsample_mse_batched, noise, patch_size=128, num_scales=4))
    turned = compute_patch_upsample_mse_batched(noise.flip(-1), 128, 4)
    assert_same_maps({side: values.flip(-1) for side, values in turned.items()}, found)
    assert 16_000 < found[1024].item() < 20_000
    layouts = PatchTokenizer(4, 128, importance_method="upsample_mse", thresholds=[1.0] * 3).select_layouts(board)
    assert layouts[0].patches_by_size == {1: 64}, "an overflow to below the threshold kept it whole"


@pytest.mark.parametrize(("channels", "patch_size"), [(3, 52), (3, 53), (1, 90), (1, 91)])
def test_upsample_mse_around_the_kernels_edge(channels, patch_size):
    assert upsampling_kernel.fits(channels, patch_size * 8, 8, fourth=False) == (patch_size in (52, 90))
    for images in worst_cells(patch_size * 8, channels):
        assert_equal(compute_patch_upsample_mse_batched, images, patch_size=patch_size, num_scales=4)


@pytest.mark.parametrize(("channels", "patch_size"), [(3, 13), (3, 14), (1, 22), (1, 23)])
def test_upsample_l4_around_the_kernels_edge(channels, patch_size):
    side = patch_size * 8
    fits = upsampling_kernel.fits(channels, side, 8, fourth=True)
    assert fits == (patch_size in (13, 22)) == (channels * side**2 * (255 * 16) ** 4 < 2**63)
    for images in worst_cells(side, channels):
        assert_equal(compute_patch_upsample_l4_batched, images, patch_size=patch_size, num_scales=4)
    assert not upsampling_kernel.fits(channels, 16, 16, fourth=True)


def test_upsample_l4_of_128_px_patches_in_four_scales():
    white, board, noise, _ = worst_cells(1024)
    maps = compute_patch_upsample_l4_batched(board, 128, 4)
    assert all(torch.equal(maps[side], torch.full_like(maps[side], 127.5**2)) for side in (256, 512, 1024))
    assert not any(found.any() for found in compute_patch_upsample_l4_batched(white, 128, 4).values())
    found = compute_patch_upsample_l4_batched(noise, 128, 4)
    turned = compute_patch_upsample_l4_batched(noise.flip(-1), 128, 4)
    assert_same_maps({side: values.flip(-1) for side, values in turned.items()}, found)
    squares = compute_patch_upsample_mse_batched(noise, 128, 4)
    assert all(squares[side].max() < found[side].min() < 2 * squares[side].max() for side in (256, 512, 1024))


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_upsampling_kernel_is_given_fits_its_integers(channels, size):
    for patch_size in itertools.count(1):
        side = patch_size * size
        # a pixel is off by white at most, whose square is below 2⁴⁴; blends on the way are no larger
        fits = channels * side**2 * (255 * 4 * size**4) ** 2 < 2**63
        assert upsampling_kernel.fits(channels, side, size, fourth=False) == fits
        if not fits:
            break
    assert not upsampling_kernel.fits(channels, 16, 16, fourth=False)


@pytest.mark.parametrize("method", ["upsample_l4", "upsample_mse"])
def test_more_scales_than_an_error_is_exact_for_are_refused(method):
    with pytest.raises(ValueError, match=f"num_scales=5 with '{method}': expected at most 4"):
        IMPORTANCE_METHODS[method].compute(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 2, 5)


def test_entropy_around_the_kernels_edge():
    noise = worst_cells(256)[2]
    for patch_size in (255, 256):  # 2¹⁶ − 1 is the most pixels that a histogram of the kernel counts
        for images in (noise, torch.zeros_like(noise)):
            assert_equal(compute_patch_entropy_batched, images, patch_size=patch_size, num_scales=1)
    assert entropy_kernel.MOST_PIXELS // 255 == 257 and entropy_kernel.MOST_PIXELS < 256**2


def test_entropy_of_cells_that_63_bits_cannot_count_is_refused():
    assert entropy._count_log(9038**2) < 2**63 <= entropy._count_log(9039**2)
    with pytest.raises(
        ValueError, match=r"cells of 9039×9039 px are too large for exact sums of 'entropy'; take a sm"
    ):
        compute_patch_entropy_batched(torch.empty(1, 3, 9039, 9050, dtype=torch.uint8, device="meta"), 9039, 1)


def test_a_large_patch_on_a_small_image_takes_no_large_table():
    images = worst_cells(56)[2]
    for method in IMPORTANCE_METHODS.values():
        maps = method.compute(images, 2**20, 4)
        assert {side: found.tolist() for side, found in maps.items()} == {
            2**20 * 2**scale: [[[PAD_VALUE]]] for scale in range(4)
        }


def test_laplacian_of_cells_that_53_bits_cannot_sum_is_refused():
    assert 29717**2 * 4 * 9999 * 255 < 2**53 <= 29718**2 * 4 * 9999 * 255
    images = torch.empty(1, 1, 29718, 29718, dtype=torch.uint8, device="meta")
    compute_patch_laplacian_batched(images, 29717, 1)
    with pytest.raises(ValueError, match="cells of 29718×29718 px are too large for exact sums of 'laplacian'"):
        compute_patch_laplacian_batched(images, 29718, 1)


@pytest.mark.filterwarnings("ignore:images hold pixels of another range")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint16])
def test_pixels_far_from_grey_levels_overflow_nothing(dtype):
    most = 65535 if dtype == torch.uint16 else torch.iinfo(torch.int32).max
    images = torch.zeros(1, 3, 112, 112, dtype=torch.float64)
    images[..., ::2, 1::2] = images[..., 1::2, ::2] = most
    images = images.to(dtype)
    seen = min(most, 2**16) / 2
    maps = compute_patch_upsample_mse_batched(images, 14, 4)
    assert all(torch.equal(maps[side], torch.full_like(maps[side], seen**2)) for side in (28, 56, 112))
    fourths = compute_patch_upsample_l4_batched(images, 14, 4)
    assert all(torch.equal(fourths[side], torch.full_like(fourths[side], 255.0**2)) for side in (28, 56, 112))
    inner = compute_patch_laplacian_batched(images, 14, 1)[14][:, 1:-1, 1:-1]
    np.testing.assert_allclose(inner, 4 * 2 * seen * 0.9999, rtol=1e-6)
    entropy = compute_patch_entropy_batched(images, 14, 4)
    assert all(torch.equal(found, torch.ones_like(found)) for found in entropy.values()), "the first bin and the last"


def test_integers_are_looked_at_as_floats_are():
    for dtype in (torch.bool, torch.int8, torch.int32, torch.uint16):
        images = torch.randint(0, 2, (1, 3, 28, 28)).to(dtype)
        with pytest.warns(UserWarning, match="multiply images in"):
            compute_patch_entropy_batched(images, 14, 2)
