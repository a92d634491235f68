"""Leaving out what repeats its neighbour, against a slow reading of the rule, pixel by pixel in fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code import InvalidLayoutError, PatchLayout, dropping
from apt_code.dropping import drop_flat
from tests.apt_code.references import canonical, is_layout, random_tiling


def layout_of(patches, grid):
    return PatchLayout(grid, torch.tensor(canonical(patches), dtype=torch.int64))


def raster_of(image, row, col, size, patch):
    """The values that a model would read of a unit, per channel: `size` 1 is a merge cell that is split."""
    side = patch * max(size, 2)
    top, left = row * patch, col * patch
    return [
        [
            Fraction(sum(channel[top + y + i][left + x + j] for i in range(size) for j in range(size)), size * size)
            for y in range(0, side, size)
            for x in range(0, side, size)
        ]
        for channel in image
    ]


def slow_rule(image, patches, grid, tolerance, patch):
    """The patches that stay. A unit waits until all cells that it touches on the left and above are decided."""
    units = [(row, col, size) for row, col, size in patches if size > 1 or (row % 2 == 0 and col % 2 == 0)]
    decided, dropped = {}, set()  # merge cell -> root colour, or None where it is not flat
    while units:
        for unit in units:
            row, col, size = unit
            r, c, side = row // 2, col // 2, max(1, size // 2)
            left = [(r + i, c - 1) for i in range(side)] if c else []
            above = [(r - 1, c + i) for i in range(side)] if r else []
            if all(place in decided for place in left + above):
                break
        units.remove(unit)
        values = raster_of(image, row, col, size, patch)
        means = [sum(channel) / len(channel) for channel in values]
        spread = [sum((v - m) ** 2 for v in channel) / len(channel) for channel, m in zip(values, means, strict=True)]
        root = means if all(s <= Fraction(tolerance) ** 2 for s in spread) else None
        if root is not None:
            for beside in (left, above):
                roots = [decided[place] for place in beside]
                if roots and all(
                    other is not None
                    and all(abs(m - o) <= Fraction(tolerance) for m, o in zip(means, other, strict=True))
                    for other in roots
                ):
                    dropped |= {(r + i, c + j) for i in range(side) for j in range(side)}
                    root = roots[0]
                    break
        for i in range(side):
            for j in range(side):
                decided[r + i, c + j] = root
    return [list(place) for place in canonical(patches) if (place[0] // 2, place[1] // 2) not in dropped]


def scene(grid, patch, levels, seed, channels=3):
    """A picture of large plain areas of few colours, some of them a little rough."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, levels, (channels, -(-grid[0] // 4), -(-grid[1] // 4))) * 3 + 100
    pixels = coarse.repeat(4 * patch, 1).repeat(4 * patch, 2)[:, : grid[0] * patch, : grid[1] * patch]
    rough = random.random((grid[0], grid[1])).repeat(patch, 0).repeat(patch, 1) < 0.2
    noise = random.integers(-6, 7, pixels.shape) * rough
    return (pixels + noise).clip(0, 255).astype(np.uint8)


@given(
    rows=st.integers(1, 4), cols=st.integers(1, 4), levels=st.integers(1, 3), seed=st.integers(0, 10**6),
    chance=st.floats(0, 1), tolerance=st.sampled_from([0, 0.5, 1, 2, 3, 7.25]), channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_against_the_slow_rule(rows, cols, levels, seed, chance, tolerance, channels):
    grid, patch = (2 * rows, 2 * cols), 4
    image = scene(grid, patch, levels, seed, channels)
    patches = random_tiling(grid, 3, chance, seed)
    expected = slow_rule(image.astype(int).tolist(), patches, grid, tolerance, patch)
    pixels, layout = torch.from_numpy(image), layout_of(patches, grid)
    (compiled,) = drop_flat(pixels[None], [layout], tolerance, patch)
    walk = dropping._keep_unlike(pixels, layout, tolerance, patch)
    plain = layout.patches[walk.stays]
    (floats,) = drop_flat(pixels[None].float(), [layout], tolerance, patch)
    assert compiled.patches.tolist() == plain.tolist() == floats.patches.tolist() == expected
    (other,) = dropping._walk(pixels[None], [layout], tolerance, patch)
    assert np.array_equal(walk.roots, other.roots) and np.array_equal(walk.pixels, other.pixels)


def test_the_scenes_are_worth_it():
    """Otherwise the comparison above could be of layouts that nothing is dropped from."""
    counts = []
    for seed in range(20):
        grid = (8, 8)
        layout = layout_of(random_tiling(grid, 3, 0.5, seed), grid)
        (found,) = drop_flat(torch.from_numpy(scene(grid, 4, 2, seed))[None], [layout], 2, 4)
        counts.append(len(layout) - len(found))
    assert sum(counts) > 100 and min(counts) < 3


def test_the_first_cell_always_stays():
    grid = (8, 12)
    white = torch.full((1, 3, 8 * 14, 12 * 14), 255, dtype=torch.uint8)
    for chance in (0.0, 0.5, 1.0):
        layout = layout_of(random_tiling(grid, 3, chance, 3), grid)
        (found,) = drop_flat(white, [layout], 0, 14)
        size = int(layout.patches[0, 2])
        assert found.patches.tolist() == layout.patches[: 4 if size == 1 else 1].tolist()


def test_nothing_drifts_along_a_gradient():
    """Each step is smaller than the tolerance, but what is dropped inherits the root's colour, not its neighbour's."""
    steps = torch.arange(40, dtype=torch.uint8).repeat_interleave(28) + 50  # a grey level more for each cell
    image = steps.expand(1, 3, 28, -1).contiguous()
    layout = PatchLayout.from_corner_sizes(torch.tensor([[2, 0] * 40, [0, 0] * 40]))
    (found,) = drop_flat(image, [layout], 2, 14)
    assert found.cols.tolist() == [2 * cell for cell in range(0, 40, 3)], "a new root for every third level"


def test_a_split_cell_goes_as_a_whole_or_stays_as_a_whole():
    random = np.random.default_rng(0)
    for seed in range(30):
        grid = (10, 14)
        layout = layout_of(random_tiling(grid, 3, 0.7, seed), grid)
        image = torch.from_numpy(scene(grid, 4, 2, seed + random.integers(100)))[None]
        (found,) = drop_flat(image, [layout], 2, 4)
        small = [tuple(place) for place in (found.patches[found.sizes == 1, :2] // 2).tolist()]
        assert all(small.count(place) == 4 for place in small)
        assert found.num_language_tokens == found.num_patches - len(small) + len(small) // 4


def test_images_of_a_batch_do_not_see_each_other():
    grid = (6, 8)
    images = torch.stack([torch.from_numpy(scene(grid, 4, 2, seed)) for seed in range(3)])
    layouts = [layout_of(random_tiling(grid, 3, 0.4, seed), grid) for seed in range(3)]
    together = drop_flat(images, layouts, 2, 4)
    for image, layout, found in zip(images, layouts, together, strict=True):
        (alone,) = drop_flat(image[None], [layout], 2, 4)
        assert torch.equal(alone.patches, found.patches)
        assert not is_layout(found.patches.tolist(), grid) or len(found) == len(layout)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_is_dropped_inherits_the_roots_colour(dtype):
    """By hand: 100 and 120 are roots; 101 is dropped beside 100, and 99 beside it, within 2 of the root too."""
    levels = torch.tensor([[100, 101, 120], [99, 150, 121]])
    image = levels.repeat_interleave(28, 0).repeat_interleave(28, 1).expand(3, -1, -1).to(dtype).clone()
    image[:, 28:, 28:56] += torch.arange(28).to(dtype)  # not flat
    layout = layout_of([[row, col, 2] for row in (0, 2) for col in (0, 2, 4)], (4, 6))
    colours = dropping.inherited_colours(image, layout, 2, 14)
    expected = torch.tensor([[torch.nan, 100, torch.nan], [100, torch.nan, 120]])
    for channel in colours:
        torch.testing.assert_close(channel, expected, equal_nan=True)
    (found,) = drop_flat(image[None], [layout], 2, 14)
    assert torch.equal(colours[0].isnan(), found.owner[::2, ::2] >= 0)


def test_images_that_are_not_made_of_merge_cells_are_refused():
    layout = PatchLayout.uniform((4, 6))
    with pytest.raises(ValueError, match=r"images of 50×84 px with drop_tolerance: .* multiples of 28 px; .* 'off'"):
        drop_flat(torch.zeros(1, 3, 50, 84), [layout], 2, 14)


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
    with pytest.raises(error, match=words) as refusal:
        dropping.check_tolerance(value)
    assert "drop_tolerance=" in str(refusal.value) and "'off'" in str(refusal.value)
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
        found += drop_flat(torch.from_numpy(scene(grid, 4, 2, seed))[None], [layout], 3, 4)
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
