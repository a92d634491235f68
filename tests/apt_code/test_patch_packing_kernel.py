"""Compiled packing gives the bits of packing and then normalising."""

import pytest
import torch
from skimage import data

from apt_code import InvalidLayoutError, PatchLayout, PatchTokenizer, patch_packing
from apt_code.patch_packing import Affine, RowPacker


@pytest.mark.parametrize("frames", [1, 2])
def test_packing_by_table_is_packing_then_normalising(monkeypatch, frames):
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None, :, :392, :420]
    images = torch.cat([image, image.flip(-1)])
    layouts = PatchTokenizer(patch_selection_method="budget", alpha=0.4)(images).layouts
    assert set(layouts[0].patches_by_size) == {1, 2, 4}
    mean, std = torch.tensor([0.48, 0.45, 0.41]).view(-1, 1, 1), torch.tensor([0.27, 0.26, 0.28]).view(-1, 1, 1)
    normalised = []

    def normalise(pixels):
        normalised.append(pixels.numel())
        return (pixels * (1 / 255) - mean) / std

    packer = RowPacker(14, frames, normalise)
    rows = packer(images, layouts)
    packer(images, layouts)
    # work, not seconds: the values that bytes and their averages can have, once, not the pixels that are kept
    assert normalised == [3 * sum(255 * size**2 + 1 for size in (1, 2, 4))]
    monkeypatch.setattr(patch_packing, "can_compile", lambda images: False)
    assert torch.equal(torch.cat(rows), torch.cat(packer(images, layouts)))
    assert normalised[1] == sum(map(len, layouts)) * 3 * 14 * 14


@pytest.mark.parametrize("frames", [1, 2])
def test_packing_by_arithmetic_is_packing_by_table(frames):
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None, :, :392, :420]
    for side, layout in ((14, PatchTokenizer(patch_selection_method="budget", alpha=0.4)), (7, PatchTokenizer(3, 7))):
        layouts = layout.select_layouts(image)
        affine = Affine((122.8, 116.7, 104.1), (68.5, 66.6, 70.3 + frames))  # not seen by another test
        work = []

        def normalise(pixels, affine=affine, work=work):
            work.append(pixels.numel())
            return affine.of(pixels)

        expected = RowPacker(side, frames, normalise)(image, layouts)
        for _ in range(3):
            found = RowPacker(side, frames, normalise, affine)(image, layouts)
            assert torch.equal(torch.cat(found), torch.cat(expected))
        assert len(work) <= 2  # for the table, and to see that the affine map is what it says


def test_packing_does_not_believe_a_wrong_claim():
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None, :, :392, :420]
    layouts = [PatchLayout.uniform((28, 30))]

    def gamma(pixels):
        return (pixels / 255) ** 2.2

    (found,) = RowPacker(14, 2, gamma, Affine((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)))(image, layouts)
    (expected,) = RowPacker(14, 2, gamma)(image, layouts)
    assert torch.equal(found, expected)


def test_packing_believes_while_others_make_many_claims():
    """As other threads may, others come in between at every look-up, and make more claims than are remembered."""

    def believe(affine: Affine) -> Affine | None:
        return RowPacker(14, 1, affine.of, affine)._believed(3, 1)

    class Interrupted(Affine):
        def __hash__(self) -> int:
            for i in range(70):
                believe(Affine((float(i),) * 3, self.std))
            return super().__hash__()

    interrupted = Interrupted((1.0,) * 3, (7.0,) * 3)
    for _ in range(3):
        assert believe(interrupted) is interrupted
    assert patch_packing._holds_up_to.cache_info().currsize <= 64


def test_packing_refuses_a_layout_that_leaves_the_image():
    outside = PatchLayout((4, 4), torch.tensor([[2, 2, 4]]))
    with pytest.raises(InvalidLayoutError, match="outside its grid"):
        RowPacker(14, 2, lambda pixels: pixels)(torch.zeros(1, 3, 56, 56, dtype=torch.uint8), [outside])


def test_sizes_that_are_none_are_refused_by_the_packing_kernel():
    odd = PatchLayout((4, 4), torch.tensor([[0, 0, 3]]))
    with pytest.raises(InvalidLayoutError, match="power of two"):
        RowPacker(14, 2, lambda pixels: pixels)(torch.zeros(1, 3, 56, 56, dtype=torch.uint8), [odd])
    huge = PatchLayout((32, 32), torch.tensor([[0, 0, 32]]))
    with pytest.raises(ValueError, match="a patch of size 32: expected at most 16"):
        RowPacker(1, 1, lambda pixels: pixels)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [huge])


@pytest.mark.parametrize("frames", [1, 2])
def test_packing_other_patch_sides_and_scales(monkeypatch, frames):
    images = torch.randint(0, 256, (3, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[1:, :, 32:] = images[1:, :, 32:] // 128
    for side, num_scales in ((2, 4), (4, 4), (8, 3)):
        tokenizer = PatchTokenizer(
            num_scales, side, importance_method="upsample_mse", thresholds=[9e3] * (num_scales - 1)
        )
        layouts = tokenizer.select_layouts(images)
        packer = RowPacker(side, frames, lambda pixels: pixels / 255)
        found = packer(images, layouts)
        with monkeypatch.context() as patch:
            patch.setattr(patch_packing, "can_compile", lambda images: False)
            expected = packer(images, layouts)
        assert {size for layout in layouts for size in layout.patches_by_size} >= {2 ** (num_scales - 1)}
        for rows, wanted in zip(found, expected, strict=True):
            assert torch.equal(rows, wanted)
