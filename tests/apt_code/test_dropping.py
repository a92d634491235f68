"""Leaving out what repeats its neighbour, against a slow reading of both rules, pixel by pixel in fractions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code import InvalidLayoutError, PatchLayout, dropping
from apt_code.dropping import drop_repeats, inherited_pixels
from tests.apt_code.dropping_reference import slow_rules
from tests.apt_code.references import canonical, is_layout, random_tiling


def layout_of(patches, grid):
    return PatchLayout(grid, torch.tensor(canonical(patches), dtype=torch.int64))


def scene(grid, patch, levels, seed, channels=3, striped=False):
    """A picture of large plain areas of few colours, some of them a little rough, or under lines that go on."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, levels, (channels, -(-grid[0] // 4), -(-grid[1] // 4))) * 3 + 100
    pixels = coarse.repeat(4 * patch, 1).repeat(4 * patch, 2)[:, : grid[0] * patch, : grid[1] * patch]
    rough = random.random((grid[0], grid[1])).repeat(patch, 0).repeat(patch, 1) < 0.2
    noise = random.integers(-6, 7, pixels.shape) * rough
    if striped:  # some columns of cells, then some rows
        pixels = pixels + 60 * (random.random(grid[1]) < 0.3).repeat(patch) * (np.arange(grid[1] * patch) % 4 == 1)
        across = (random.random(grid[0]) < 0.3).repeat(patch) * (np.arange(grid[0] * patch) % 8 == 3)
        pixels, noise = pixels + 40 * across[:, None], noise // 3
    return (pixels + noise).clip(0, 255).astype(np.uint8)


@given(
    rows=st.integers(1, 4), cols=st.integers(1, 4), levels=st.integers(1, 3), seed=st.integers(0, 10**6),
    chance=st.floats(0, 1), channels=st.sampled_from([1, 3]), striped=st.booleans(),
    flat=st.sampled_from([None, 0, 0.5, 1, 2, 3, 7.25]), predict=st.sampled_from([None, 0, 1.5, 4, 20]),
)  # fmt: skip
def test_against_the_slow_rules(rows, cols, levels, seed, chance, channels, striped, flat, predict):
    grid, patch = (2 * rows, 2 * cols), 4
    image = scene(grid, patch, levels, seed, channels, striped)
    patches = random_tiling(grid, 3, chance, seed)
    stays, seen = slow_rules(image.astype(int).tolist(), patches, grid, patch, flat, predict)
    pixels, layout = torch.from_numpy(image), layout_of(patches, grid)
    for values in (pixels, pixels.float()):  # the compiled form, and the plain one
        (found,) = drop_repeats(values[None], [layout], patch, flat, predict)
        assert found.patches.tolist() == stays
        assert inherited_pixels(values, layout, patch, flat, predict).tolist() == seen


@pytest.mark.parametrize("shift", [0, 0.25, 0.5])
def test_floating_point_pixels_are_compared_in_whole_grey_levels(shift):
    """With parts of a level, as bicubic resizing leaves them."""
    grid = (8, 8)
    image = scene(grid, 4, 2, 5, striped=True) + shift
    patches = random_tiling(grid, 3, 0.5, 5)
    stays, seen = slow_rules(image.tolist(), patches, grid, 4, 2, 3)
    pixels, layout = torch.from_numpy(image).float(), layout_of(patches, grid)
    (found,) = drop_repeats(pixels[None], [layout], 4, 2, 3)
    assert found.patches.tolist() == stays
    assert inherited_pixels(pixels, layout, 4, 2, 3).tolist() == seen


def test_the_scenes_are_worth_it():
    """Otherwise the comparison above could be of layouts that nothing is dropped from."""
    grid = (8, 8)
    counts = {True: [], False: []}
    for seed in range(20):
        layout = layout_of(random_tiling(grid, 3, 0.5, seed), grid)
        for striped, found in counts.items():
            pixels = torch.from_numpy(scene(grid, 4, 2, seed, striped=striped))[None]
            kept = [len(drop_repeats(pixels, [layout], 4, *rules)[0]) for rules in ((2, None), (None, 4), (2, 4))]
            found.append([len(layout) - n for n in kept])
    flat, predictable, both = np.transpose(counts[False])
    assert flat.sum() > 100 and flat.min() < 3
    flat, predictable, both = np.transpose(counts[True])
    assert predictable.sum() > 50 and both.sum() > flat.sum() + 30


def test_the_first_cell_always_stays():
    grid = (8, 12)
    white = torch.full((1, 3, 8 * 14, 12 * 14), 255, dtype=torch.uint8)
    for chance in (0.0, 0.5, 1.0):
        layout = layout_of(random_tiling(grid, 3, chance, 3), grid)
        size = int(layout.patches[0, 2])
        for rules in ((0, None), (None, 0), (0, 0), (255, 255)):
            (found,) = drop_repeats(white, [layout], 14, *rules)
            assert found.patches.tolist() == layout.patches[: 4 if size == 1 else 1].tolist()


def test_nothing_drifts_along_a_gradient():
    """Each step is smaller than the tolerance, but what is dropped inherits the root's colour, not its neighbour's."""
    steps = torch.arange(40, dtype=torch.uint8).repeat_interleave(28) + 50  # a grey level more for each cell
    image = steps.expand(1, 3, 28, -1).contiguous()
    layout = PatchLayout.from_corner_sizes(torch.tensor([[2, 0] * 40, [0, 0] * 40]))
    (found,) = drop_repeats(image, [layout], 14, 2)
    assert found.cols.tolist() == [2 * cell for cell in range(0, 40, 3)], "a new root for every third level"


def test_a_split_cell_goes_as_a_whole_or_stays_as_a_whole():
    random = np.random.default_rng(0)
    for seed in range(30):
        grid = (10, 14)
        layout = layout_of(random_tiling(grid, 3, 0.7, seed), grid)
        image = torch.from_numpy(scene(grid, 4, 2, seed + random.integers(100)))[None]
        (found,) = drop_repeats(image, [layout], 4, 2, 4)
        small = [tuple(place) for place in (found.patches[found.sizes == 1, :2] // 2).tolist()]
        assert all(small.count(place) == 4 for place in small)
        assert found.num_language_tokens == found.num_patches - len(small) + len(small) // 4


def test_images_of_a_batch_do_not_see_each_other():
    grid = (6, 8)
    images = torch.stack([torch.from_numpy(scene(grid, 4, 2, seed)) for seed in range(3)])
    layouts = [layout_of(random_tiling(grid, 3, 0.4, seed), grid) for seed in range(3)]
    together = drop_repeats(images, layouts, 4, 2, 4)
    for image, layout, found in zip(images, layouts, together, strict=True):
        (alone,) = drop_repeats(image[None], [layout], 4, 2, 4)
        assert torch.equal(alone.patches, found.patches)
        assert not is_layout(found.patches.tolist(), grid) or len(found) == len(layout)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_is_dropped_inherits_the_roots_colour(dtype):
    """By hand: 100 and 120 are roots; 101 is dropped beside 100, and 99 beside it, within 2 of the root too."""
    levels = torch.tensor([[100, 101, 120], [99, 150, 121]])
    image = levels.repeat_interleave(28, 0).repeat_interleave(28, 1).expand(3, -1, -1).to(dtype).clone()
    image[:, 28:, 28:56] += torch.arange(28).to(dtype)  # not flat
    layout = layout_of([[row, col, 2] for row in (0, 2) for col in (0, 2, 4)], (4, 6))
    (found,) = drop_repeats(image[None], [layout], 14, 2)
    stays = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.equal(found.owner[::2, ::2] >= 0, stays)
    seen = inherited_pixels(image, layout, 14, 2)
    colours = torch.tensor([[0, 100, 0], [100, 0, 120]]).repeat_interleave(28, 0).repeat_interleave(28, 1)
    for channel in seen:
        assert torch.equal(channel.long()[colours > 0], colours[colours > 0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("last", "stays"), [(107, True), (97, False)])
def test_the_upper_neighbour_predicts_only_where_the_upper_left_is_not_like_it(dtype, last, stays):
    """By hand: 103 stays, as 200 was expected; below it the upper left is like both, so the left one counts."""
    levels = torch.tensor([[100, 200], [100, 103], [100, last]])
    image = levels.repeat_interleave(28, 0).repeat_interleave(28, 1).expand(3, -1, -1).to(dtype)
    layout = layout_of([[row, col, 2] for row in (0, 2, 4) for col in (0, 2)], (6, 4))
    (found,) = drop_repeats(image[None], [layout], 14, None, 4)
    assert (found.owner[::2, ::2] >= 0).tolist() == [[True, True], [False, True], [False, stays]]
    seen = inherited_pixels(image, layout, 14, None, 4)
    assert seen[:, ::28, ::28].tolist() == [[[100, 200], [100, 103], [100, last if stays else 100]]] * 3


@pytest.mark.parametrize("rules", [(2, None), (None, 2)])
def test_images_that_are_not_made_of_merge_cells_are_refused(rules):
    layout = PatchLayout.uniform((4, 6))
    with pytest.raises(ValueError, match=r"50×84 px with drop_tolerance or .* multiples of 28 px; .* 'off'"):
        drop_repeats(torch.zeros(1, 3, 50, 84), [layout], 14, *rules)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("2", TypeError, "'2' of type str"),
        (True, TypeError, "of type bool"),
        (-0.1, ValueError, "from 0 to 255"),
        (256, ValueError, "from 0 to 255"),
        (float("nan"), ValueError, "from 0 to 255"),
        (float("inf"), ValueError, "from 0 to 255"),
    ],
)
def test_a_tolerance_that_cannot_be_used_is_refused(value, error, words):
    for name in ("drop_tolerance", "predict_tolerance"):
        with pytest.raises(error, match=words) as refusal:
            dropping.check_tolerance(value, name)
        assert f"{name}=" in str(refusal.value) and "'off'" in str(refusal.value)
    assert (
        dropping.check_tolerance(None) is None is dropping.check_tolerance("off")
        and dropping.check_tolerance(2) == 2.0
    )


# -------------------------------------------------------------------- layouts with cells left out


def dropped_layouts():
    grids = [(8, 12), (4, 4), (10, 6)]
    found = []
    for seed, grid in enumerate(grids):
        layout = layout_of(random_tiling(grid, 3, 0.4, seed), grid)
        found += drop_repeats(torch.from_numpy(scene(grid, 4, 2, seed))[None], [layout], 4, 3, 4)
    return grids, found


def test_partial_layouts_travel_with_their_counts():
    grids, layouts = dropped_layouts()
    packed = torch.cat([layout.patches for layout in layouts])
    counts = torch.tensor([len(layout) for layout in layouts])
    again = PatchLayout.unpack(packed, torch.tensor([[1, *grid] for grid in grids]), counts)
    assert [a.patches.tolist() for a in again] == [b.patches.tolist() for b in layouts]
    tokens = PatchLayout.language_tokens_per_image(packed, torch.tensor(grids), counts)
    assert tokens == [layout.num_language_tokens for layout in layouts]
    assert sum(layout.dropped_cells for layout in layouts) > 5
    for layout in layouts:
        assert layout.dropped_cells == int((layout.owner == -1).sum()) // 4
        assert len(layout.language_cells) == layout.num_language_tokens == len(layout.merger_index) // 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda patches, counts: (patches, counts + 1), "image_patch_counts"),
        (lambda patches, counts: (patches, counts[:-1]), "image_patch_counts"),
        (lambda patches, counts: (patches, counts.roll(1)), "patch|base cell"),
        (lambda patches, counts: (patches, torch.tensor([0, *counts[1:-1], counts[-1] + counts[0]])), "at least 1"),
        (lambda patches, counts: (patches[1:], counts - torch.tensor([1, 0, 0])), "base cell|canonical"),
        (lambda patches, counts: (patches.flip(0), counts), "patch"),
        (lambda patches, counts: (torch.cat([patches[:1], patches]), counts + torch.tensor([1, 0, 0])), "canonical"),
    ],
)
def test_damaged_partial_layouts_are_refused(damage, words):
    grids, layouts = dropped_layouts()
    packed = torch.cat([layout.patches for layout in layouts])
    counts = torch.tensor([len(layout) for layout in layouts])
    with pytest.raises(InvalidLayoutError, match=words):
        packed, counts = damage(packed, counts)
        PatchLayout.unpack(packed, torch.tensor(grids), counts)


def test_half_a_merge_cell_is_no_partial_layout():
    four = torch.tensor([[0, 0, 2], [0, 2, 1], [0, 3, 1], [1, 2, 1], [1, 3, 1]])
    PatchLayout((2, 6), four).validate(whole=False)
    for missing in range(1, 5):
        with pytest.raises(InvalidLayoutError, match="whole merge cell"):
            PatchLayout((2, 6), four[torch.arange(5) != missing]).validate(whole=False)
    with pytest.raises(InvalidLayoutError, match="the first one has to be there"):
        PatchLayout((2, 6), four[1:]).validate(whole=False)
    with pytest.raises(InvalidLayoutError, match="expected once; use"):
        PatchLayout((2, 6), four).validate()
