"""The Laplacian and upsample-MSE maps against naive references in exact arithmetic, and the table of methods."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_code.entropy_utils import (
    IMPORTANCE_METHODS,
    are_grey_levels,
    compute_patch_entropy_batched,
    compute_patch_laplacian_batched,
    compute_patch_upsample_mse_batched,
    threshold_warning,
)
from tests.apt_code import references
from tests.apt_code.test_entropy_utils import assert_same_maps, picture

METHODS = {"laplacian": compute_patch_laplacian_batched, "upsample_mse": compute_patch_upsample_mse_batched}


def naive(method: str, image: torch.Tensor, side: int, patch_size: int) -> np.ndarray:
    def value(pixels: list, top: int, left: int) -> float:
        if method == "laplacian":
            return references.laplacian_of_cell(pixels, top, left, side)
        return references.upsample_mse_of_cell(pixels, top, left, side, side // patch_size)

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
        np.testing.assert_allclose(found[0].double().numpy(), naive(method, image, side, 4), rtol=1e-5, atol=1e-6)


def test_upsample_mse_by_hand():
    # 2×2 cell on a 1-pixel raster: the average, repeated; then a linear ramp, which a 2-pixel raster gets wrong at
    # the clamped edges only
    cell = torch.tensor([[0.0, 4.0], [8.0, 12.0]]).reshape(1, 1, 2, 2)
    assert compute_patch_upsample_mse_batched(cell, 1, 2)[2].item() == (36 + 4 + 4 + 36) / 4
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 1, 4, 4)  # restored as 0.5, 1, 2, 2.5
    maps = compute_patch_upsample_mse_batched(ramp, 2, 2)
    assert maps[4].item() == (0.25 + 0 + 0 + 0.25) / 4
    assert not maps[2].any(), "the finest scale loses nothing"


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


def test_laplacian_and_mse_bounds():
    board = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = 255
    inner = compute_patch_laplacian_batched(board, 2, 1)[2][0, 1:3, 1:3]
    assert torch.equal(inner, torch.full((2, 2), 1020 * 0.9999, dtype=torch.float64).float())
    assert torch.equal(compute_patch_upsample_mse_batched(board, 2, 2)[4], torch.full((1, 2, 2), 127.5**2))


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


def test_the_table_of_methods():
    assert set(IMPORTANCE_METHODS) == {"entropy", *METHODS}
    entropy = IMPORTANCE_METHODS["entropy"]
    assert entropy.compute is compute_patch_entropy_batched
    assert [entropy.thresholds(scales) for scales in (1, 2, 3, 4)] == [[], [3.0], [3.0, 2.0], [3.0, 2.0, 2.0]]
    assert not entropy.coarse_scores
    assert not IMPORTANCE_METHODS["laplacian"].coarse_scores
    assert IMPORTANCE_METHODS["upsample_mse"].coarse_scores, "its finest map is 0: means of it would say nothing"
    for method, compute in METHODS.items():
        assert IMPORTANCE_METHODS[method].compute is compute


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: compares the GPU's bits with the CPU's"
)
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_the_same_bits(method):
    images = torch.stack([picture(130, 118, seed=seed) for seed in range(3)])
    on_gpu = METHODS[method](images.cuda(), num_scales=4)
    assert_same_maps({k: v.cpu() for k, v in on_gpu.items()}, METHODS[method](images, num_scales=4))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.1, 2.6), (0.0, 65535.0)])
def test_pixels_that_are_no_grey_levels_are_named(low, high):
    noise = torch.rand(1, 3, 56, 56) * (high - low) + low
    for method in IMPORTANCE_METHODS.values():
        with pytest.warns(UserWarning, match="expected grey levels from 0 to 255.*multiply"):
            method.compute(noise, 14, 3)


def test_grey_levels_are_not_warned_of(recwarn):
    noise = torch.rand(1, 3, 56, 56)
    for images in (noise * 255, noise * 3, noise * 260 - 4, torch.full((1, 3, 56, 56), 0.5)):
        compute_patch_entropy_batched(images, 14, 3)
    assert not recwarn.list


def test_many_unreadable_images_are_warned_of_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # once for each place and text
        for seed in range(20):
            noise = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
            compute_patch_entropy_batched(noise * (1 + seed / 20) - seed, 14, 2)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("lowest", "highest", "readable"),
    [
        (0, 255, True),
        (-12.7, 200, True),  # 5 % of 255 are 12.75
        (-12.8, 200, False),
        (0, 267.7, True),
        (0, 267.8, False),
        (-12.7, 267.7, True),
        (-3, 12.8, True),  # below 0 there is nothing without something bright
        (-3, 12.7, False),
        (-0.1, 12.7, False),
        (0, 12.7, True),
        (0, 1.01, True),
        (0, 1, False),
        (-1, 1, False),
        (0, 0, True),
        (0.5, 0.5, True),
        (-12.7, -12.7, True),
        (-12.8, -12.8, False),
        (267.8, 267.8, False),
        (math.nan, math.nan, False),
    ],
)
def test_grey_levels_overshoot_by_five_percent_at_most(lowest, highest, readable):
    assert are_grey_levels(lowest, highest) == readable
    # of a whole batch, as the image processor asks
    found = are_grey_levels(torch.tensor([lowest, 0.0]), torch.tensor([highest, 255.0]))
    assert found.tolist() == [readable, True]
    if math.isnan(lowest):
        return
    images = torch.full((1, 3, 28, 28), float(lowest))
    images[..., ::2] = highest
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for method in IMPORTANCE_METHODS.values():
            method.compute(images, 14, 2)
    assert len(caught) == (0 if readable else len(IMPORTANCE_METHODS))


@pytest.mark.parametrize("method", IMPORTANCE_METHODS)
@given(
    patch_size=st.integers(1, 8),
    levels=st.sampled_from([2, 3, 256]),
    kind=st.sampled_from(["noise", "board", "ramp"]),
    bins=st.sampled_from([1, 4, 512]),
    seed=st.integers(0, 999),
)
def test_no_importance_is_above_the_highest(method, patch_size, levels, kind, bins, seed):
    side = patch_size * 8
    if kind == "noise":
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, levels, (1, 3, side, side), generator=generator) * (255 // (levels - 1))
    elif kind == "board":
        images = torch.arange(side).view(-1, 1).add(torch.arange(side)).remainder(2).mul(255).expand(1, 3, -1, -1)
    else:
        images = torch.arange(side * side).mul(255 * seed).remainder(256).view(1, 1, side, side)
    row = IMPORTANCE_METHODS[method]
    options = {"bins": bins} if method == "entropy" else {}
    for cell, found in row.compute(images.to(torch.uint8), patch_size, 4, **options).items():
        assert found.max().item() <= row.highest(cell, bins), (method, cell)


def test_the_highest_importance_is_reached_where_it_can_be():
    assert IMPORTANCE_METHODS["entropy"].highest(28, 512) == 9
    assert IMPORTANCE_METHODS["entropy"].highest(16, 512) == 8
    assert compute_patch_entropy_batched(torch.arange(256).view(1, 1, 16, 16), 16, 1)[16].item() == 8
    assert IMPORTANCE_METHODS["laplacian"].highest(28, 512) == 1020
    assert IMPORTANCE_METHODS["upsample_mse"].highest(28, 512) == 65025


@pytest.mark.parametrize(
    ("thresholds", "method", "options", "named"),
    [
        ([36.0, 36.0], "entropy", {}, ["36 at 28 px (highest importance there: 9)", "36 at 56 px"]),
        ([3.0, 9.01], "entropy", {}, ["9.01 at 56 px (highest importance there: 9)"]),
        ([9.0, 9.0], "entropy", {}, []),
        ([3.0, math.inf], "entropy", {}, []),
        ([math.inf, 36.0], "entropy", {}, ["36 at 56 px"]),
        ([-math.inf, -1.0], "entropy", {}, []),
        ([3.0, 2.0], "entropy", {"bins": 4}, ["3 at 28 px (highest importance there: 2)"]),
        ([8.1], "entropy", {"base_patch_size": 8}, ["8.1 at 16 px (highest importance there: 8)"]),
        ([1020.0, 1021.0], "laplacian", {}, ["1021 at 56 px (highest importance there: 1020)"]),
        ([65025.0, 65026.0], "upsample_mse", {}, ["65026 at 56 px (highest importance there: 6.502e+04)"]),
        ([36.0, 36.0], "upsample_mse", {}, []),
        ([], "entropy", {}, []),
    ],
)
def test_thresholds_that_keep_every_cell_whole_are_named(thresholds, method, options, named):
    text = threshold_warning(thresholds, method, **{"base_patch_size": 14, **options})
    if not named:
        assert text is None
        return
    assert text.startswith(f"thresholds={thresholds} with the importance map {method!r}, in ")
    assert all(name in text for name in named) and text.count("highest importance there") == len(named)
    for remedy in ("Lower the thresholds (default [", "importance_method", "float('inf')"):
        assert remedy in text


def test_the_default_thresholds_are_within_reach():
    for method, row in IMPORTANCE_METHODS.items():
        for base_patch_size in (14, 16):
            assert threshold_warning(row.thresholds(4), method, base_patch_size) is None


@pytest.mark.parametrize("method", IMPORTANCE_METHODS)
def test_maps_of_pixels_that_require_gradients(method):
    images = picture(112, 140)[None].float()
    maps = IMPORTANCE_METHODS[method].compute(images.clone().requires_grad_(), 14, 3)
    assert not any(found.requires_grad for found in maps.values())
    assert_same_maps(maps, IMPORTANCE_METHODS[method].compute(images, 14, 3))
