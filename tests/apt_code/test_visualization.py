"""The drawings, pixel by pixel, on a tiling known by hand."""

import pytest
import torch

from apt_code.patch_layout import PatchLayout
from apt_code.visualization import PATCH_COLOURS, draw_tiling, reconstruct, to_picture

P = 14


@pytest.fixture
def layout():
    """4×6 base cells: one 56-px patch on the left; on the right one 28-px patch above four 14-px ones."""
    patches = [[0, 0, 4], [0, 4, 2], [2, 4, 1], [2, 5, 1], [3, 4, 1], [3, 5, 1]]
    layout = PatchLayout((4, 6), torch.tensor(patches))
    layout.validate()
    return layout


def test_every_border_is_where_its_patch_is(layout):
    grey = torch.full((3, 4 * P, 6 * P), 128)
    picture = draw_tiling(grey, layout, P, scale=2)
    assert picture.size == (6 * P * 2, 4 * P * 2)
    for row, col, size in layout.patches.tolist():
        left, top, side = col * P * 2, row * P * 2, size * P * 2
        middle = side // 2
        for dx, dy in ((0, middle), (side - 1, middle), (middle, 0), (middle, side - 1)):
            assert picture.getpixel((left + dx, top + dy)) == (0, 0, 0)
        for dx, dy in ((1, middle), (side - 2, middle), (middle, 1), (middle, side - 2)):
            assert picture.getpixel((left + dx, top + dy)) == PATCH_COLOURS[size]
        assert picture.getpixel((left + middle, top + middle)) == (128, 128, 128)


def test_reconstruction_averages_coarse_patches_and_keeps_fine_ones(layout):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 4 * P, 6 * P), dtype=torch.uint8)
    seen = reconstruct(image, layout, P)
    assert seen.shape == image.shape and seen.dtype == torch.uint8
    fine = (slice(None), slice(2 * P, None), slice(4 * P, None))
    assert torch.equal(seen[fine], image[fine])
    block = image[:, 8:12, 4:8].double().mean((1, 2)).round()  # one 4×4 block of the 56-px patch
    assert torch.equal(seen[:, 8:12, 4:8].double(), block.view(3, 1, 1).expand(3, 4, 4))
    block = image[:, 6:8, 4 * P + 2 : 4 * P + 4].double().mean((1, 2)).round()  # one 2×2 block of the 28-px patch
    assert torch.equal(seen[:, 6:8, 4 * P + 2 : 4 * P + 4].double(), block.view(3, 1, 1).expand(3, 2, 2))


def test_a_grey_image_becomes_an_rgb_picture():
    picture = to_picture(torch.full((1, 2, 3), 300.0))
    assert picture.mode == "RGB" and picture.size == (3, 2) and picture.getpixel((0, 0)) == (255, 255, 255)
