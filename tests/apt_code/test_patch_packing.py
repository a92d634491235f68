"""Packing against slow cropping and averaging: right pixels, right order, nothing but the kept patches."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code import patch_packing
from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import RowPacker, area_average, cells_of, pack_patches
from tests.apt_code.references import canonical, random_tiling


def slow_patch(image: torch.Tensor, row: int, col: int, size: int, side: int) -> np.ndarray:
    """One patch, `(c, side, side)` float64: crop, zeros where the image ends, mean of each `size × size` block."""
    reach = size * side
    crop = image[:, row * side : row * side + reach, col * side : col * side + reach].double().numpy()
    padded = np.zeros((len(image), reach, reach))
    padded[:, : crop.shape[1], : crop.shape[2]] = crop
    patch = np.zeros((len(image), side, side))
    for down, right in np.ndindex(side, side):
        block = padded[:, down * size : (down + 1) * size, right * size : (right + 1) * size]
        patch[:, down, right] = block.sum((1, 2)) / size**2
    return patch


@st.composite
def batches(draw) -> tuple[torch.Tensor, list[PatchLayout], int]:
    """Random uint8 images of one size, a random tiling of each, and the side of a base patch."""
    side = draw(st.sampled_from([2, 3, 7, 14]))
    height, width = draw(st.integers(1, 9 * side)), draw(st.integers(1, 9 * side))
    batch, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3]))
    seed = draw(st.integers(0, 2**16))
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, channels, height, width), dtype=np.uint8)
    grid = (math.ceil(height / side), math.ceil(width / side))
    layouts = []
    for i in range(batch):
        # a coarse patch must lie wholly inside the image, in pixels and not only in cells: tile the whole cells
        whole = random_tiling((height // side, width // side), draw(st.integers(1, 4)), 0.6, seed + i)
        rest = {(row, col, 1) for row, col in np.ndindex(*grid) if row >= height // side or col >= width // side}
        layouts.append(PatchLayout(grid, torch.tensor(canonical(whole | rest)).reshape(-1, 3)))
    return torch.from_numpy(pixels), layouts, side


@given(batch=batches(), dtype=st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.float64]))
def test_matches_cropping_and_averaging_to_the_bit(batch, dtype):
    images, layouts, side = batch
    packed = pack_patches(images.to(dtype), layouts, side)
    expected = [
        slow_patch(image, *patch, side)
        for image, layout in zip(images, layouts, strict=True)
        for patch in layout.patches.tolist()
    ]
    assert packed.dtype == torch.float32
    # averages of up to 64 bytes are exact in float32, in any order of summation
    assert torch.equal(packed, torch.from_numpy(np.stack(expected)).float())


@given(batch=batches())
def test_float_pixels(batch):
    images, layouts, side = batch
    images = torch.sqrt(images.float()) - 3
    packed = pack_patches(images, layouts, side)
    start = 0
    for image, layout in zip(images, layouts, strict=True):
        for index, patch in enumerate(layout.patches.tolist()):
            np.testing.assert_allclose(packed[start + index], slow_patch(image, *patch, side), rtol=1e-5, atol=1e-5)
        alone = pack_patches(image[None], [layout], side)
        assert torch.equal(alone, packed[start : start + len(layout)]), "rows depend on the neighbours in the batch"
        start += len(layout)
    assert start == len(packed)


@given(batch=batches(), data=st.data())
def test_a_pixel_reaches_its_own_patch_only(batch, data):
    images, layouts, side = batch
    clean = pack_patches(images.float(), layouts, side)
    chosen = data.draw(st.integers(0, len(images) - 1))
    height, width = images.shape[-2:]
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    poisoned = images.float()
    poisoned[chosen, :, row, col] = math.nan
    packed = pack_patches(poisoned, layouts, side)
    before = sum(len(layout) for layout in layouts[:chosen])
    hit = before + int(layouts[chosen].owner[row // side, col // side])
    others = torch.arange(len(packed)) != hit
    assert packed[hit].isnan().any()
    assert torch.equal(packed[others], clean[others])
    size = int(layouts[chosen].sizes[hit - before])
    assert packed[hit].isnan().sum() == images.shape[1]  # one pixel of the raster, whatever the patch's size
    assert packed[hit, 0, row % (side * size) // size, col % (side * size) // size].isnan()


@given(batch=batches(), compiled=st.booleans())
def test_the_parts_of_coarse_patches_are_base_patches(batch, compiled):
    images, layouts, side = batch
    if not compiled:
        images = images.to(torch.int16)
    expected = [
        slow_patch(image, row + down, col + right, 1, side)
        for image, layout in zip(images, layouts, strict=True)
        for row, col, size in layout.patches.tolist()
        if size > 1
        for down, right in np.ndindex(size, size)
    ]
    parts = RowPacker(side, 1, lambda pixels: pixels)(images, [layout.parts for layout in layouts])
    assert [len(part) for part in parts] == [layout.parts.num_patches for layout in layouts]
    rows = torch.from_numpy(np.stack(expected)).float().flatten(1) if expected else torch.cat(parts)[:0]
    assert torch.equal(torch.cat(parts), rows)


@given(batch=batches())
def test_only_the_kept_patches_are_computed(batch):
    images, layouts, side = batch
    averaged: dict[int, int] = {}

    def spy(cells: torch.Tensor, size: int) -> torch.Tensor:
        assert size not in averaged
        averaged[size] = len(cells)
        assert cells.shape[1:] == (images.shape[1], size * side, size * side)
        return area_average(cells, size)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patch_packing, "area_average", spy)
        pack_patches(images, layouts, side)
    kept: dict[int, int] = {}
    for layout in layouts:
        for size, count in layout.patches_by_size.items():
            kept[size] = kept.get(size, 0) + count
    assert averaged == kept


def test_whole_cells_are_views_of_the_image():
    image = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12)
    cells = cells_of(image, 4)
    assert cells.shape == (2, 2, 3, 3, 4, 4)
    assert cells.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
    assert torch.equal(cells[1, 1, 2], image[1, :, 4:8, 8:12])
    padded = cells_of(image[..., :7, :9], 4)
    assert padded.shape == (2, 2, 3, 3, 4, 4)
    assert torch.equal(padded[1, 1, 2, :, :3, :1], image[1, :, 4:7, 8:9])
    assert padded[1, 1, 2].count_nonzero() == 3 * 3


def test_area_average_by_hand():
    cell = torch.tensor([[0, 4, 1, 1], [8, 12, 1, 2], [255, 255, 0, 0], [255, 255, 0, 1]], dtype=torch.uint8)
    average = area_average(cell.reshape(1, 1, 4, 4), 2)
    assert average.dtype == torch.float32
    assert average.tolist() == [[[[6.0, 1.25], [255.0, 0.25]]]]
    assert area_average(cell.reshape(1, 1, 4, 4), 1).tolist() == [[cell.tolist()]]
    assert area_average(cell.reshape(1, 1, 4, 4)[:0], 2).shape == (0, 1, 2, 2)


@given(batch=batches())
def test_packing_has_the_gradient_of_an_average(batch):
    images, layouts, side = batch
    pixels = images.float().requires_grad_()
    packer = RowPacker(side, 2, lambda patches: patches / 2)
    for pack, share in (
        (lambda: pack_patches(pixels, layouts, side), 1.0),
        (lambda: torch.cat(packer(pixels, layouts)), 2 / 2),  # two frames of half the pixel
    ):
        (gradient,) = torch.autograd.grad(pack().sum(), pixels)
        for found, layout in zip(gradient, layouts, strict=True):
            sizes = layout.sizes[layout.owner].repeat_interleave(side, 0).repeat_interleave(side, 1)
            expected = share / sizes[: images.shape[-2], : images.shape[-1]].float() ** 2
            assert torch.equal(found, expected.expand_as(found))


def test_memory_layout_does_not_matter():
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 56, 70), dtype=np.uint8))
    layouts = [PatchLayout((4, 5), torch.tensor(canonical(random_tiling((4, 5), 3, 0.7, seed)))) for seed in range(2)]
    expected = pack_patches(images, layouts, 14)
    for view in (
        images.contiguous(memory_format=torch.channels_last),
        images.float().contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 3, 112, 140, dtype=torch.uint8)[..., ::2, ::2].copy_(images),
    ):
        assert torch.equal(pack_patches(view, layouts, 14), expected)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([(4, 5)], "2 images of 4×5 base patches got layouts for the grids [(4, 5)]; pass one layout per image"),
        ([(4, 5)] * 3, "2 images of 4×5 base patches got layouts for the grids [(4, 5), (4, 5), (4, 5)]"),
        ([(4, 5), (5, 4)], "2 images of 4×5 base patches got layouts for the grids [(4, 5), (5, 4)]"),
    ],
)
def test_layouts_for_other_images_are_refused(grids, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pack_patches(torch.zeros(2, 3, 56, 60), [PatchLayout.uniform(grid) for grid in grids], 14)


@pytest.mark.cuda
@given(batch=batches())
def test_cuda_packs_the_same_bits(batch):
    images, layouts, side = batch
    packed = pack_patches(images.cuda(), layouts, side)
    assert packed.is_cuda
    assert torch.equal(packed.cpu(), pack_patches(images, layouts, side))
