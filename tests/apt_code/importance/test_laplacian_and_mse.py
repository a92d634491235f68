"""The Laplacian map and those of what upsampling loses, against naive references in exact arithmetic."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_code.importance import (
    IMPORTANCE_METHODS,
)
from apt_code.importance.laplacian import compute_patch_laplacian_batched
from apt_code.importance.upsample_l4 import compute_patch_upsample_l4_batched
from apt_code.importance.upsample_mse import compute_patch_upsample_mse_batched
from tests.apt_code import references
from tests.apt_code.references import assert_same_maps, picture

METHODS = {
    "laplacian": compute_patch_laplacian_batched,
    "upsample_l4": compute_patch_upsample_l4_batched,
    "upsample_mse": compute_patch_upsample_mse_batched,
}


def naive(method: str, image: torch.Tensor, side: int, patch_size: int) -> np.ndarray:
    def value(pixels: list, top: int, left: int) -> float:
        if method == "laplacian":
            return references.laplacian_of_cell(pixels, top, left, side)
        of_cell = {"upsample_l4": references.upsample_l4_of_cell, "upsample_mse": references.upsample_mse_of_cell}
        return of_cell[method](pixels, top, left, side, side // patch_size)

    return references.importance_map(image, side, value)


@pytest.mark.parametrize("method", METHODS)
@given(
    height=st.integers(1, 26),
    width=st.integers(1, 26),
    patch_size=st.integers(1, 5),
    num_scales=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)
def test_integer_pixels_match_the_naive_map_to_the_bit(method, height, width, patch_size, num_scales, channels, seed):
    image = picture(height, width, channels, seed)
    maps = METHODS[method](image[None], patch_size, num_scales)
    assert list(maps) == [patch_size * 2**scale for scale in range(num_scales)]
    for side, found in maps.items():
        assert found.dtype == torch.float32
        expected = torch.from_numpy(naive(method, image, side, patch_size)).float()
        assert torch.equal(found[0], expected), (found[0] - expected).abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_qwen_scales_match_the_naive_map(method):
    image = picture(58, 57, seed=1)
    for side, found in METHODS[method](image[None], patch_size=14).items():
        assert torch.equal(found[0], torch.from_numpy(naive(method, image, side, 14)).float())


@pytest.mark.parametrize("method", METHODS)
def test_float_pixels_match_the_naive_map(method):
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(2)) * 255
    for side, found in METHODS[method](image[None], 4, 3).items():
        # float pixels have no exact errors, so that one of them may be rounded to the next sixteenth
        tolerance = 1e-3 if method == "upsample_l4" else 1e-5
        np.testing.assert_allclose(found[0].double().numpy(), naive(method, image, side, 4), tolerance, atol=1e-6)


def test_upsample_mse_by_hand():
    # 2×2 cell on a 1-pixel raster: the average, repeated; then a linear ramp, which a 2-pixel raster gets wrong at
    # the clamped edges only
    cell = torch.tensor([[0.0, 4.0], [8.0, 12.0]]).reshape(1, 1, 2, 2)
    assert compute_patch_upsample_mse_batched(cell, 1, 2)[2].item() == (36 + 4 + 4 + 36) / 4
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 1, 4, 4)  # restored as 0.5, 1, 2, 2.5
    maps = compute_patch_upsample_mse_batched(ramp, 2, 2)
    assert maps[4].item() == (0.25 + 0 + 0 + 0.25) / 4
    assert not maps[2].any(), "the finest scale loses nothing"


def test_upsample_l4_by_hand():
    cell = torch.tensor([[0.0, 4.0], [8.0, 12.0]]).reshape(1, 1, 2, 2)
    found = compute_patch_upsample_l4_batched(cell, 1, 2)[2]
    assert found.item() == np.float32(math.sqrt((6**4 + 2**4 + 2**4 + 6**4) / 4))
    # half a sixteenth of a grey level is rounded away from 0, less of it to 0
    for lost, seen in ((1 / 32, 1 / 16), (1 / 33, 0.0)):
        pair = torch.tensor([[100 - lost, 100 + lost], [100 + lost, 100 - lost]]).double().reshape(1, 1, 2, 2)
        assert compute_patch_upsample_l4_batched(pair, 1, 2)[2].item() == seen**2


@given(seed=st.integers(0, 2**16), patch_size=st.sampled_from([1, 4, 7]))
def test_upsample_l4_is_at_least_the_mean_squared_error(seed, patch_size):
    images = picture(8 * patch_size, 12 * patch_size, seed=seed)[None]
    fourths, squares = (METHODS[name](images, patch_size, 4) for name in ("upsample_l4", "upsample_mse"))
    for side, found in fourths.items():
        # rounding to sixteenths takes at most a half of one from an error e, so 2 e / 32 from its square
        assert (found >= squares[side] - squares[side].sqrt() / 16 - 1e-3).all()


def test_a_stroke_weighs_more_than_noise_of_the_same_energy():
    cells = torch.full((2, 1, 28, 28), 128, dtype=torch.uint8)
    cells[0, 0, :, 14] = 228
    energy = compute_patch_upsample_mse_batched(cells, 14, 2)[28][0].item()
    board = torch.arange(28).view(-1, 1).add(torch.arange(28)).remainder(2).mul(2).sub(1)
    cells[1, 0] = (128 + round(math.sqrt(energy)) * board).to(torch.uint8)
    stroke, noise = compute_patch_upsample_mse_batched(cells, 14, 2)[28].flatten().tolist()
    assert noise == pytest.approx(stroke, rel=0.05)
    stroke, noise = compute_patch_upsample_l4_batched(cells, 14, 2)[28].flatten().tolist()
    assert stroke > 2.5 * noise


def test_laplacian_by_hand():
    dot = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    dot[..., 2, 2] = 100
    # 4·100 at the dot and 100 at each of its four neighbours, two of which lie in other cells
    grid = compute_patch_laplacian_batched(dot, 2, 1)[2][0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[1, 1], expected[0, 1], expected[1, 0] = 600, 100, 100
    assert torch.equal(grid, (expected * 0.9999 / 4).float())
    maps = compute_patch_laplacian_batched(torch.full((1, 3, 8, 8), 9, dtype=torch.uint8), 2, 3)
    assert not any(found.any() for found in maps.values()), "a replicated border adds nothing to a flat image"


def test_bounds():
    board = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = 255
    inner = compute_patch_laplacian_batched(board, 2, 1)[2][0, 1:3, 1:3]
    assert torch.equal(inner, torch.full((2, 2), 1020 * 0.9999, dtype=torch.float64).float())
    for compute in (compute_patch_upsample_mse_batched, compute_patch_upsample_l4_batched):
        assert torch.equal(compute(board, 2, 2)[4], torch.full((1, 2, 2), 127.5**2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("as_float", [False, True])
@settings(max_examples=8)
@given(batch=st.integers(2, 3), seed=st.integers(0, 99), size=st.sampled_from([(112, 112), (120, 59), (28, 84)]))
def test_an_image_does_not_depend_on_its_batch(method, as_float, batch, seed, size):
    images = torch.stack([picture(*size, seed=seed + i) for i in range(batch)])
    if as_float:
        images = images / 3
    together = METHODS[method](images, 14, 4)
    for i in range(batch):
        assert_same_maps(
            {side: found[i : i + 1] for side, found in together.items()},
            METHODS[method](images[i : i + 1], 14, 4),
        )


@pytest.mark.parametrize("method", METHODS)
def test_order_of_summation_does_not_matter(method):
    # turning the image sums every cell in another order; 8× cells of noise need the most digits
    image = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2, 3, 128, 128), dtype=np.uint8))
    upright = METHODS[method](image, 16, 4)
    for turned, back in ((image.flip(-1), -1), (image.flip(-2), -2), (image.flip(1), None)):
        if method == "laplacian" and back is None:
            continue  # the grey weights differ per channel
        found = METHODS[method](turned, 16, 4)
        assert_same_maps({side: v if back is None else v.flip(back) for side, v in found.items()}, upright)
    turned = METHODS[method](image.transpose(-1, -2), 16, 4)
    assert_same_maps({side: v.transpose(-1, -2) for side, v in turned.items()}, upright)


@pytest.mark.parametrize("method", METHODS)
def test_dtype_channels_and_memory_layout_do_not_matter(method):
    images = torch.stack([picture(64, 57, seed=seed) for seed in range(2)])
    expected = METHODS[method](images)
    strided = torch.zeros(2, 3, 128, 114, dtype=torch.uint8)[..., ::2, ::2].copy_(images)
    views = [images.to(dtype) for dtype in (torch.int16, torch.int32, torch.float32, torch.float64)]
    views += [images.contiguous(memory_format=torch.channels_last), strided]
    views += [views[2].contiguous(memory_format=torch.channels_last)]
    for view in views:
        assert_same_maps(METHODS[method](view), expected)
    grey = images[:, :1]
    assert_same_maps(METHODS[method](grey), METHODS[method](grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("method", METHODS)
@given(height=st.integers(1, 130), width=st.integers(1, 130))
def test_cells_that_stick_out_hold_pad_value(method, height, width):
    maps = METHODS[method](picture(height, width)[None], 16, 4, pad_value=-1.0)
    for side, found in maps.items():
        assert found.shape == (1, math.ceil(height / side), math.ceil(width / side))
        sticks_out = torch.ones(found.shape[1:], dtype=torch.bool)
        sticks_out[: height // side, : width // side] = False
        assert torch.equal(found[0] == -1.0, sticks_out)


@pytest.mark.parametrize("method", METHODS)
def test_refusals(method):
    with pytest.raises(ValueError, match=r"1 or 3 channels, got \(1, 2, 28, 28\)"):
        METHODS[method](torch.zeros(1, 2, 28, 28))
    with pytest.raises(ValueError, match="NaN or infinite"):
        METHODS[method](torch.full((1, 3, 28, 28), -math.inf))


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_the_same_bits(method):
    images = torch.stack([picture(130, 118, seed=seed) for seed in range(3)])
    on_gpu = METHODS[method](images.cuda(), num_scales=4)
    assert_same_maps({k: v.cpu() for k, v in on_gpu.items()}, METHODS[method](images, num_scales=4))


@pytest.mark.parametrize("method", IMPORTANCE_METHODS)
def test_maps_of_pixels_that_require_gradients(method):
    images = picture(112, 140)[None].float()
    maps = IMPORTANCE_METHODS[method].compute(images.clone().requires_grad_(), 14, 3)
    assert not any(found.requires_grad for found in maps.values())
    assert_same_maps(maps, IMPORTANCE_METHODS[method].compute(images, 14, 3))
