"""The way of images on a GPU, taken by images on the CPU: the same bits as the CPU's own way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from apt_code import PatchLayout, PatchTokenizer, compilation, dropping_kernel, patch_packing, patch_tokenizer
from apt_code.device import dropping as device_dropping
from apt_code.device import selection
from apt_code.device.dropping import drop_flat, flat_sums
from apt_code.device.fetching import to_host
from apt_code.device.packing import write_rows
from apt_code.device.selection import select_batches
from apt_code.device.upsampling import scale_up
from apt_code.dropping import drop_repeats
from apt_code.patch_packing import RowPacker
from tests.apt_code.references import random_tiling
from tests.apt_code.test_dropping import layout_of, scene
from tests.apt_code.test_patch_packing import batches

TOLERANCES = st.sampled_from([0, 0.1, 0.5, 1, 2, 2.3, 7.25, 100])


def every_unit(grid, size):
    """Each complete cell of a size as if it were a patch, with 1 the first patch of each merge cell."""
    side = max(size, 2)
    return [[row * side, col * side, size] for row in range(grid[0] // side) for col in range(grid[1] // side)]


@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)), patch=st.sampled_from([3, 4, 7, 14]),
    channels=st.sampled_from([1, 3]), seed=st.integers(0, 10**6), tolerance=TOLERANCES,
)  # fmt: skip
def test_the_sums_are_those_of_the_kernel(grid, patch, channels, seed, tolerance):
    grid = (2 * grid[0], 2 * grid[1])
    images = np.stack([scene(grid, patch, 3, seed + i, channels) for i in range(2)])
    found = flat_sums(torch.from_numpy(images), patch, 4, tolerance)
    assert list(found) == [1, 2, 4, 8]
    for size, sums in found.items():
        units = np.array(every_unit(grid, size), np.int64).reshape(-1, 3)
        assert sums.shape == (2, channels, grid[0] // max(size, 2), grid[1] // max(size, 2))
        for image, of_image in zip(images, sums.numpy(), strict=True):
            expected = np.full((len(units), channels), -1, np.int64)
            dropping_kernel._flat_kernel(0, size)(image, units, patch, tolerance, expected)
            expected[expected[:, 0] < 0] = -1
            assert np.array_equal(of_image.reshape(channels, -1).T, expected)


@pytest.mark.parametrize(("patch", "size"), [(512, 4), (1024, 1)])
def test_sums_of_the_largest_cells_do_not_overflow(patch, size):
    """Half black, half white: 127.5 grey levels around the mean, as far as it can be."""
    image = torch.zeros(1, 1, 2048, 2048, dtype=torch.uint8)
    image[..., 1024:] = 255
    for tolerance, expected in ((127.4, -1), (127.5, 255 * 2048 * 1024)):
        assert flat_sums(image, patch, 3, tolerance)[size].tolist() == [[[[expected]]]]


@given(
    rows=st.integers(1, 5), cols=st.integers(1, 5), levels=st.integers(1, 3), seed=st.integers(0, 10**6),
    chance=st.floats(0, 1), tolerance=TOLERANCES, compiled=st.booleans(),
)  # fmt: skip
def test_dropping_by_sums_is_dropping_by_pixels(rows, cols, levels, seed, chance, tolerance, compiled):
    grid, patch = (2 * rows, 2 * cols), 4
    images = torch.stack([torch.from_numpy(scene(grid, patch, levels, seed + i)) for i in range(2)])
    layouts = [layout_of(random_tiling(grid, 3, chance, seed + i), grid) for i in range(2)]
    sums = flat_sums(images, patch, 3, tolerance)
    with pytest.MonkeyPatch.context() as patched:
        if not compiled:
            patched.setattr(device_dropping, "can_compile", lambda *_: False)
        found = drop_flat(sums, (grid[0] * patch, grid[1] * patch), layouts, patch, tolerance)
    expected = drop_repeats(images, layouts, patch, tolerance)
    assert [one.patches.tolist() for one in found] == [one.patches.tolist() for one in expected]


def test_images_that_are_not_made_of_merge_cells_are_refused():
    images, layouts = torch.zeros(1, 3, 50, 84, dtype=torch.uint8), [PatchLayout.uniform((4, 6))]
    with pytest.raises(ValueError, match=r"50×84 px with drop_tolerance .* multiples of 28 px"):
        drop_flat(flat_sums(images, 14, 3, 2.0), (50, 84), layouts, 14, 2.0)


@given(batch=batches(), other=batches(), dtype=st.sampled_from([torch.uint8, torch.int16, torch.float32]))
def test_rows_are_those_of_the_host(batch, other, dtype):
    """Of two batches whose images take turns in the output."""
    (images, layouts, side), (more, others, _) = batch, other
    if other[2] != side or more.shape[1] != images.shape[1]:
        more, others = images.flip(0), layouts[::-1]
    parts = [(images.to(dtype), layouts), (more.to(dtype), others)]
    order = sorted(
        ((i, k) for k, (_, found) in enumerate(parts) for i in range(len(found))),
    )
    starts, total = [[], []], 0
    for i, k in order:
        starts[k].append(total)
        total += len(parts[k][1][i])
    packer = RowPacker(side, 2, lambda pixels: (pixels - 100) / 50)
    shape = (total, packer.row_length(images))
    expected, found = torch.zeros(shape), torch.full(shape, torch.nan)
    given_ = [(*part, start) for part, start in zip(parts, starts, strict=True)]
    packer.write_batches(given_, expected)
    write_rows(given_, found, side, 2, packer.normalise)
    assert torch.equal(found, expected)


def test_one_copy_brings_every_dtype():
    tensors = [
        torch.arange(5, dtype=torch.uint8),
        torch.randn(2, 3, requires_grad=True),
        torch.arange(6).view(3, 2).T,
        torch.empty(0, 4, dtype=torch.int64),
        torch.randn(3).double(),
        torch.tensor([True, False]),
        torch.randn(3).bfloat16(),
    ]
    for found, expected in zip(to_host(tensors), tensors, strict=True):
        assert found.dtype == expected.dtype and not found.requires_grad and torch.equal(found, expected.detach())
    assert to_host([]) == []


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("width", [1, 2, 5, 14])
def test_scaling_up_is_torchs(size, width):
    def torchs(rasters):
        return F.interpolate(rasters, scale_factor=size, mode="bilinear", align_corners=False)

    averages = F.avg_pool2d(torch.randint(0, 256, (3, 3, width * size, width * size)).float(), size)
    assert torch.equal(scale_up(averages, size), torchs(averages))
    rough = torch.randn(2, 1, width, width, dtype=torch.float64)
    torch.testing.assert_close(scale_up(rough, size), torchs(rough))


@pytest.fixture(scope="module")
def shapes():
    """Batches of several shapes, none of them all complete 56-px cells."""
    return [
        torch.stack([torch.from_numpy(scene((rows, cols), 14, 2, rows + i, striped=i % 2 == 0)) for i in range(count)])
        for count, rows, cols in ((3, 10, 12), (1, 6, 14), (2, 2, 2))
    ]


SELECTIONS = (
    {"importance_method": "upsample_mse"},
    {"patch_selection_method": "v2", "alpha": 0.5},
    {"patch_selection_method": "budget", "alpha": 0.4},
    {"patch_selection_method": "budget", "alpha": 1.0},
    {"patch_selection_method": "budget", "alpha": 0.5, "importance_method": "laplacian"},
    {"patch_selection_method": "joint", "alpha": 0.4, "importance_method": "upsample_l4"},
)
every_tolerance = pytest.mark.parametrize(
    "tolerances",
    [{}, {"drop_tolerance": 2}, {"predict_tolerance": 4}, {"drop_tolerance": 2, "predict_tolerance": 4}],
    ids=str,
)
every_dtype = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])


def assert_same_selections(found, expected):
    for (layouts, info), (wanted, its_info) in zip(found, expected, strict=True):
        assert [one.patches.tolist() for one in layouts] == [one.patches.tolist() for one in wanted]
        assert info == its_info


@pytest.mark.parametrize("numba", [True, False])
@every_dtype
@every_tolerance
def test_batches_are_tiled_as_one_by_one(monkeypatch, shapes, tolerances, dtype, numba):
    if not numba:
        monkeypatch.setattr(compilation, "_numba_is_there", lambda: False)
    for settings in SELECTIONS:
        tokenizer = PatchTokenizer(**settings, **tolerances)
        batches = [images.to(dtype) for images in shapes]
        expected = select_batches(tokenizer, batches)
        with monkeypatch.context() as patched:
            for module in (patch_tokenizer, selection):
                patched.setattr(module, "on_device", lambda images: True)
            assert_same_selections(select_batches(tokenizer, batches), expected)
            alone = tokenizer.select_layouts(batches[0]), tokenizer.last_budget_info
        assert_same_selections([alone], expected[:1])


@pytest.mark.cuda
@every_dtype
@every_tolerance
def test_cuda_tiles_the_same(shapes, tolerances, dtype):
    batches = [images.to(dtype) for images in shapes]
    for settings in SELECTIONS:
        tokenizer = PatchTokenizer(**settings, **tolerances)
        found = select_batches(tokenizer, [images.cuda() for images in batches])
        assert_same_selections(found, select_batches(tokenizer, batches))


@pytest.mark.cuda
def test_cuda_gives_the_same_bits(shapes):
    packer = RowPacker(14, 2, lambda pixels: pixels * 2 - 3)
    for images in shapes:
        for size, found in flat_sums(images.cuda(), 14, 4, 2.0).items():
            assert torch.equal(found.cpu(), flat_sums(images, 14, 4, 2.0)[size])
        layouts = PatchTokenizer(importance_method="upsample_mse").select_layouts(images)
        for found, expected in zip(packer(images.cuda(), layouts), packer(images, layouts), strict=True):
            assert found.is_cuda and torch.equal(found.cpu(), expected)
        for size in (2, 4, 8):
            averages = F.avg_pool2d(images.float(), size)[..., :6, :6]
            assert torch.equal(scale_up(averages.cuda(), size).cpu(), scale_up(averages, size))


def test_a_batch_without_a_patch_writes_nothing(monkeypatch):
    monkeypatch.setattr(patch_packing, "on_device", lambda images: True)
    nothing = PatchLayout((2, 2), torch.empty(0, 3, dtype=torch.int64))
    images = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    RowPacker(14, 2, lambda pixels: pixels).write(images, [nothing], torch.empty(0, 3 * 2 * 14 * 14), [0])
