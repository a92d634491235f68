"""The drawings, pixel by pixel, on a tiling known by hand."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from apt_code.patch_layout import PatchLayout
from apt_code.patch_selection import PAD_VALUE
from apt_code.visualization import (
    DROPPED_COLOUR,
    EVERYWHERE,
    LEGEND_BACKGROUND,
    PATCH_COLOURS,
    ZERO_EVERYWHERE,
    add_legend,
    add_scale,
    draw_heatmap,
    draw_tiling,
    highest_importance,
    reconstruct,
    shade_importance,
    to_picture,
)

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


@pytest.fixture
def partial():
    """4×6 base cells of 28-px patches, of which three are left out."""
    return PatchLayout((4, 6), torch.tensor([[0, 0, 2], [0, 4, 2], [2, 2, 2]]))


def test_what_is_left_out_is_dark_and_hatched(partial):
    grey = torch.full((3, 4 * P, 6 * P), 128)
    picture = np.asarray(draw_tiling(grey, partial, P, scale=2))
    for row in range(2):
        for col in range(3):
            inner = picture[row * 4 * P + 4 : (row + 1) * 4 * P - 4, col * 4 * P + 4 : (col + 1) * 4 * P - 4]
            colours = {tuple(colour) for colour in inner.reshape(-1, 3).tolist()}
            kept = [2 * row, 2 * col, 2] in partial.patches.tolist()
            assert colours == ({(128, 128, 128)} if kept else {(44, 44, 44), DROPPED_COLOUR})
    legend = add_legend(draw_tiling(grey, partial, P, scale=4), partial, P)
    assert DROPPED_COLOUR in {colour for _, colour in legend.crop((0, 4 * P * 4, *legend.size)).getcolors(10**6)}


def test_reconstruction_shows_the_inherited_pixels(partial):
    image = torch.randint(0, 256, (3, 4 * P, 6 * P), dtype=torch.uint8)
    inherited = torch.randint(0, 256, image.shape, dtype=torch.uint8)
    seen = reconstruct(image, partial, P, inherited)
    for row, col in ((0, 1), (1, 0), (1, 2)):
        place = (slice(None), slice(row * 28, (row + 1) * 28), slice(col * 28, (col + 1) * 28))
        assert torch.equal(seen[place], inherited[place])
    whole = reconstruct(image, PatchLayout((4, 6), torch.tensor([[r, c, 2] for r in (0, 2) for c in (0, 2, 4)])), P)
    for row, col, _ in partial.patches.tolist():
        place = (slice(None), slice(row * P, row * P + 28), slice(col * P, col * P + 28))
        assert torch.equal(seen[place], whole[place])
    for given, words in (
        (None, "none: expected"),
        (inherited[:, ::28, ::28], r"those of shape \(3, 2, 3\): expected"),
    ):
        with pytest.raises(ValueError, match=rf"3 cells left out, .* {words} \(3, 56, 84\); .*inherited_pixels"):
            reconstruct(image, partial, P, given)


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


def test_a_larger_drawing_has_broader_lines(layout):
    picture = draw_tiling(torch.full((3, 4 * P, 6 * P), 128), layout, P, scale=4)
    middle = 2 * P  # of a 14-px patch
    left = 4 * P * 4
    row = [picture.getpixel((left + x, 2 * P * 4 + middle)) for x in range(4)]
    assert row == [(0, 0, 0), PATCH_COLOURS[1], PATCH_COLOURS[1], (128, 128, 128)]


def _has(picture, colour):
    return (np.asarray(picture) == colour).all(-1).any()


@pytest.mark.parametrize("width", [6 * P, 400, 3000])
def test_the_legend_stands_below_and_names_the_sizes_there_are(layout, width):
    picture = Image.new("RGB", (width, 40), (1, 2, 3))
    sheet = add_legend(picture, layout, P)
    assert sheet.crop((0, 0, width, 40)).tobytes() == picture.tobytes()
    assert sheet.width >= width and sheet.height > 40 + 14
    below = sheet.crop((0, 40, *sheet.size))
    for size, colour in PATCH_COLOURS.items():
        assert _has(below, colour) == (size in (1, 2, 4))
    assert below.getpixel((0, 0)) == LEGEND_BACKGROUND and _has(below, (255, 255, 255))
    # text ends before the edge
    assert (np.asarray(sheet)[40:, -4:] == LEGEND_BACKGROUND).all()


DARKEST, BRIGHTEST, MIDDLE = (0, 0, 3), (252, 254, 164), (187, 55, 84)  # of inferno


def _centre(picture, colour, tolerance=2):
    """Where most of a colour is, in fractions of the picture, and its share of the pixels."""
    pixels = np.asarray(picture).astype(int)
    found = np.argwhere((np.abs(pixels - colour) <= tolerance).all(-1))
    assert len(found), f"no {colour}"
    y, x = np.median(found, axis=0)
    return x / picture.width, y / picture.height, len(found) / pixels[..., 0].size


@pytest.mark.parametrize(("unit", "half"), [("bits", 4.0), ("grey levels²", 2.0)])
def test_a_heatmap_has_its_colours_where_the_cells_are(unit, half):
    importance = torch.tensor([[0.0, 8.0, PAD_VALUE], [half, 8.0, PAD_VALUE]])
    picture = draw_heatmap(importance, 56, (112, 140), highest=8.0, unit=unit, title="a title")
    dark_x, dark_y, dark_share = _centre(picture, DARKEST)
    bright_x, _, bright_share = _centre(picture, BRIGHTEST)
    _, middle_y, _ = _centre(picture, MIDDLE)  # a squared unit is coloured by its root
    grey_x, _, grey_share = _centre(picture, (191, 191, 191))
    assert dark_x < 0.4 < bright_x < grey_x
    assert dark_y < 0.5 < middle_y
    # the last column sticks out by half of its cells, and is hatched rather than the brightest of all
    assert bright_share == pytest.approx(2 * dark_share, rel=0.15) and 0 < grey_share < dark_share


@pytest.mark.parametrize(("unit", "half"), [("bits", 4.0), ("grey levels²", 2.0)])
def test_a_shaded_map_lies_over_the_image_pixel_for_pixel(unit, half):
    importance = torch.tensor([[0.0, 8.0, PAD_VALUE], [half, 8.0, PAD_VALUE]])
    picture = shade_importance(importance, 56, (112, 140), highest=8.0, unit=unit)
    assert picture.size == (140, 112)
    places = {(0, 0): DARKEST, (55, 55): DARKEST, (56, 0): BRIGHTEST, (0, 56): MIDDLE, (112, 111): (191, 191, 191)}
    for place, colour in places.items():
        assert max(abs(a - b) for a, b in zip(picture.getpixel(place), colour, strict=True)) <= 2, place


@pytest.mark.parametrize("shape", [(56, 56), (28, 2800), (2800, 28)])
def test_a_threshold_marks_the_colour_bar_only(shape):
    importance = torch.full((-(-shape[0] // 28), -(-shape[1] // 28)), 1.0)
    options = {"highest": 4.0, "unit": "bits", "title": "t"}
    plain = draw_heatmap(importance, 28, shape, **options)
    marked = draw_heatmap(importance, 28, shape, **options, threshold=2.0)
    beyond = draw_heatmap(importance, 28, shape, **options, threshold=5.0)
    assert plain.tobytes() == beyond.tobytes() and plain.size == marked.size
    assert max(plain.size) < 2000 and min(plain.size) > 200
    differing = np.argwhere((np.asarray(plain) != np.asarray(marked)).any(-1))
    extent = np.ptp(differing, axis=0)
    assert len(differing) and min(extent) <= 12  # one line across the bar


def test_one_range_for_all_scales():
    maps = {14: torch.tensor([[1.0, 2.0]]), 28: torch.tensor([[3.0]]), 56: torch.tensor([[PAD_VALUE]])}
    assert highest_importance(maps) == 3.0
    assert highest_importance({14: torch.zeros(2, 2), 28: torch.full((1, 1), PAD_VALUE)}) == 1.0
    assert highest_importance({14: torch.full((1, 1), PAD_VALUE)}) == 1.0


def test_a_heatmap_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers-apt\[viz\]"):
        draw_heatmap(torch.zeros(1, 1), 14, (14, 14), highest=1.0, unit="bits", title="")


def test_pixels_and_maps_that_require_gradients_are_drawn(layout):
    pixels = torch.rand(3, 4 * P, 6 * P) * 255
    leaf, importance = pixels.clone().requires_grad_(), torch.rand(2, 3).requires_grad_()
    assert torch.equal(reconstruct(leaf, layout, P), reconstruct(pixels, layout, P))
    assert np.array_equal(draw_tiling(leaf, layout, P), draw_tiling(pixels, layout, P))
    size = (4 * P, 6 * P)
    shades = [shade_importance(m, 28, size, highest=1.0, unit="bits") for m in (importance, importance.detach())]
    assert np.array_equal(*shades)
    pytest.importorskip("matplotlib")
    maps = [draw_heatmap(m, 28, size, highest=1.0, unit="bits", title="") for m in (importance, importance.detach())]
    assert np.array_equal(*maps)


def test_a_map_of_zeros_is_light_and_not_black():
    zeros = torch.zeros(4, 6)
    zeros[:, 5] = PAD_VALUE
    shades = np.asarray(shade_importance(zeros, P, (4 * P, 6 * P), highest=9.0, unit="grey levels²"))
    assert (shades[:, : 5 * P] == ZERO_EVERYWHERE).all() and (shades[:, 5 * P :] != ZERO_EVERYWHERE).any()
    drawn = draw_heatmap(zeros, P, (4 * P, 6 * P), highest=9.0, unit="grey levels²", title="zeros")
    assert np.asarray(drawn).mean() > 200
    assert np.asarray(draw_heatmap(zeros + 1, P, (56, 84), highest=9.0, unit="bits", title="")).mean() < 200


def test_the_scale_below_a_map_runs_from_dark_to_bright_and_marks_the_threshold():
    picture = Image.new("RGB", (400, 300), "teal")

    def bar(**options):
        sheet = np.asarray(add_scale(picture, "28 px", highest=100.0, **options))
        text_px = 400 // 19
        assert sheet.shape == (300 + 6 * text_px, 400, 3) and (sheet[:300] == np.asarray(picture)).all()
        left = text_px // 2
        return sheet[300 + 2 * text_px + text_px // 2, left : 400 - left].astype(int)

    plain = bar(unit="grey levels²", threshold=None)
    assert plain[0].sum() < 30 and plain[-1].sum() > 600
    marked = {unit: bar(unit=unit, threshold=25.0) for unit in ("bits", "grey levels²")}
    for unit, place in (("bits", 0.25), ("grey levels²", 0.5)):  # coloured by the root
        (changed,) = (marked[unit] != plain).any(1).nonzero()
        assert abs(changed.mean() - place * len(plain)) < 3
    nothing = np.asarray(add_scale(picture, f"14 px: {EVERYWHERE}", highest=100.0, unit="bits", threshold=None))
    assert (nothing[340:] == 255).all(), "no scale where there is nothing to measure"
