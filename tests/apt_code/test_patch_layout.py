"""`PatchLayout`: every view of a tiling against a slow reference, and every way to spoil one is refused."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apt_code.patch_layout import InvalidLayoutError, PatchLayout
from tests.apt_code import references
from tests.apt_code.references import canonical, random_tiling

Grid = tuple[int, int]


@st.composite
def tilings(draw, even: bool = False) -> tuple[Grid, list[references.Patch]]:
    """A grid and the patches of a random tiling of it, in canonical order; `even` as Qwen2-VL's grids are."""
    step = 2 if even else 1
    grid = tuple(step * draw(st.integers(1, 20 // step)) for _ in range(2))
    chance = draw(st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    return grid, canonical(random_tiling(grid, draw(st.integers(1, 4)), chance, draw(st.integers(0, 2**16))))


def layout_of(grid: Grid, patches: list) -> PatchLayout:
    return PatchLayout(grid, torch.tensor(patches, dtype=torch.int64).reshape(-1, 3))


def masks_of(grid: Grid, patches: list, side: int, num_scales: int) -> dict[int, torch.Tensor]:
    masks = {}
    for size in (2**scale for scale in range(num_scales)):
        mask = torch.zeros(math.ceil(grid[0] / size), math.ceil(grid[1] / size))
        for row, col, patch_size in patches:
            if patch_size == size:
                mask[row // size, col // size] = 1
        masks[side * size] = mask
    return masks


def assert_equal(got: torch.Tensor, expected: list, dtype: torch.dtype = torch.int64) -> None:
    assert got.dtype == dtype
    assert got.tolist() == expected


# -------------------------------------------------------------------- construction and order


@given(tiling=tilings(), side=st.sampled_from([14, 16]), extra_scales=st.integers(0, 2))
def test_masks_and_layouts_convert_both_ways(tiling, side, extra_scales):
    grid, patches = tiling
    num_scales = max(size for *_, size in patches).bit_length() + extra_scales
    masks = masks_of(grid, patches, side, num_scales)
    layout = PatchLayout.from_masks(masks)
    assert layout.grid == grid
    assert_equal(layout.patches, [list(patch) for patch in patches])
    layout.validate()
    back = layout.to_masks(side, num_scales)
    assert list(back) == list(masks)
    for key, mask in masks.items():
        assert back[key].dtype == torch.float32 and torch.equal(back[key], mask)


@given(tiling=tilings())
def test_corner_sizes_come_out_in_canonical_order(tiling):
    grid, patches = tiling
    corners = torch.zeros(grid, dtype=torch.int32)
    for row, col, size in patches:
        corners[row, col] = size
    layout = PatchLayout.from_corner_sizes(corners)
    assert layout.patches.tolist() == [list(patch) for patch in patches]


@given(h=st.integers(1, 10), w=st.integers(1, 10))
def test_fully_split_is_upstreams_order(h, w):
    # upstream: (h/2, 2, w/2, 2) transposed to (h/2, w/2, 2, 2)
    rows, cols = torch.meshgrid(torch.arange(2 * h), torch.arange(2 * w), indexing="ij")
    walk = [x.reshape(h, 2, w, 2).permute(0, 2, 1, 3).flatten() for x in (rows, cols)]
    layout = PatchLayout.uniform((2 * h, 2 * w))
    assert torch.equal(layout.patches, torch.stack([*walk, torch.ones_like(walk[0])], dim=1))
    layout.validate()
    assert layout.centres.tolist() == layout.patches[:, :2].tolist()
    assert layout.merger_index.tolist() == list(range(4 * h * w))
    assert (layout.num_language_tokens, layout.retention) == (h * w, 1.0)


# -------------------------------------------------------------------- what is derived


@given(tiling=tilings())
def test_counts_centres_and_owner(tiling):
    grid, patches = tiling
    layout = layout_of(grid, patches)
    assert len(layout) == layout.num_patches == len(patches)
    assert_equal(layout.rows, [row for row, _, _ in patches])
    assert_equal(layout.cols, [col for _, col, _ in patches])
    assert_equal(layout.sizes, [size for *_, size in patches])
    sizes = sorted({size for *_, size in patches})
    assert list(layout.patches_by_size.items()) == [(s, sum(size == s for *_, size in patches)) for s in sizes]
    assert layout.retention == len(patches) / (grid[0] * grid[1])
    owner = [[-1] * grid[1] for _ in range(grid[0])]
    centres = []
    for index, (row, col, size) in enumerate(patches):
        for cell_row in range(row, row + size):
            for cell_col in range(col, col + size):
                owner[cell_row][cell_col] = index
        centres.append([sum(range(first, first + size)) / size for first in (row, col)])  # mean of its cells'
    assert_equal(layout.owner, owner)
    assert_equal(layout.centres, centres, torch.float32)


@given(tiling=tilings(even=True))
def test_language_tokens(tiling):
    grid, patches = tiling
    layout = layout_of(grid, patches)
    tokens = references.language_tokens(patches)
    assert layout.num_language_tokens == len(tokens)
    assert all(len(rows) == 4 for _, rows in tokens)
    assert_equal(layout.merger_index, [row for _, rows in tokens for row in rows])
    assert_equal(layout.language_cells, [list(cell) for cell, _ in tokens])
    assert layout.next_position == max(grid[0] // 2, grid[1] // 2)


def test_a_small_tiling_by_hand():
    # a 56, a 28 and four 14s on the right, two 28s below (one of them split)
    patches = [(0, 0, 4), (0, 4, 2), (2, 4, 1), (2, 5, 1), (3, 4, 1), (3, 5, 1), (4, 0, 2)]
    patches += [(4, 2, 1), (4, 3, 1), (5, 2, 1), (5, 3, 1), (4, 4, 2)]
    layout = layout_of((6, 6), patches)
    layout.validate()
    assert layout.centres[:3].tolist() == [[1.5, 1.5], [0.5, 4.5], [2.0, 4.0]]
    assert layout.merger_index.tolist() == [0] * 4 + [1] * 4 + [2, 3, 4, 5] + [6] * 4 + [7, 8, 9, 10] + [11] * 4
    assert layout.language_cells.tolist() == [[0, 0], [0, 2], [1, 2], [2, 0], [2, 1], [2, 2]]
    assert (layout.num_patches, layout.num_language_tokens, layout.next_position) == (12, 6, 3)
    assert layout.patches_by_size == {1: 8, 2: 3, 4: 1}


# -------------------------------------------------------------------- several images


@given(images=st.lists(tilings(even=True), max_size=5), with_time=st.booleans(), as_tensor=st.booleans())
def test_unpack_finds_the_image_boundaries(images, with_time, as_tensor):
    packed = torch.tensor([patch for _, patches in images for patch in patches], dtype=torch.int64).reshape(-1, 3)
    grids = [[1, *grid] if with_time else list(grid) for grid, _ in images]
    as_rows = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3 if with_time else 2)
    layouts = PatchLayout.unpack(packed, as_rows if as_tensor else grids)
    assert [layout.grid for layout in layouts] == [grid for grid, _ in images]
    assert [layout.patches.tolist() for layout in layouts] == [[list(p) for p in patches] for _, patches in images]
    assert PatchLayout.language_tokens_per_image(packed, as_rows) == [
        len(references.language_tokens(patches)) for _, patches in images
    ]


def test_unpack_refuses_layouts_of_other_images():
    two = torch.cat([PatchLayout.uniform((2, 4)).patches, PatchLayout.uniform((4, 4)).patches])
    with pytest.raises(InvalidLayoutError, match=r"covers 24 base cells but the image grids \[\(2, 4\)\] have 8"):
        PatchLayout.unpack(two, [(2, 4)])
    with pytest.raises(InvalidLayoutError, match="covers 0 base cells"):
        PatchLayout.unpack(two[:0], [(2, 4)])
    with pytest.raises(InvalidLayoutError):  # the areas add up, the images are swapped
        PatchLayout.unpack(two, [(4, 4), (2, 4)])
    with pytest.raises(InvalidLayoutError, match=r"shape \(num_patches, 3\)"):
        PatchLayout.unpack(two[:, :2], [(2, 4), (4, 4)])
    with pytest.raises(InvalidLayoutError, match=r"int64, got torch.float32; convert it with .long\(\)"):
        PatchLayout.unpack(two.float(), [(2, 4), (4, 4)])


@pytest.mark.parametrize("size", [0, 2**32, 2**62, -(2**63), 3, -1])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_unpack_refuses_sizes_that_hide_from_the_count(size, place):
    # squares of these are 0, or overflow to 0 or below, or add up by accident
    rows = PatchLayout.uniform((2, 2)).patches.tolist()
    rows.insert(place, [0, 0, size])
    with pytest.raises(InvalidLayoutError):
        PatchLayout.unpack(torch.tensor(rows), [(1, 2, 2)])
    with pytest.raises(InvalidLayoutError):
        PatchLayout.unpack(torch.tensor(rows + rows), [(1, 2, 2), (1, 2, 2)])


# -------------------------------------------------------------------- refusals


@st.composite
def spoiled(draw) -> tuple[Grid, list]:
    """A tiling with one to three random edits; a few of them leave it as it was."""
    grid, patches = draw(tilings())
    rows = [list(patch) for patch in patches]
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(rows))) % max(len(rows), 1)
        kind = draw(st.sampled_from(["swap", "duplicate", "drop", "column", "split", "grid"]))
        if kind == "grid":
            axis, change = draw(st.integers(0, 1)), draw(st.sampled_from([-2, -1, 1, 2]))
            grid = tuple(max(1, side + change * (axis == i)) for i, side in enumerate(grid))
        elif not rows:
            continue
        elif kind == "swap":
            other = draw(st.integers(0, len(rows) - 1))
            rows[index], rows[other] = rows[other], rows[index]
        elif kind == "duplicate":
            rows.insert(draw(st.integers(0, len(rows))), list(rows[index]))
        elif kind == "drop":
            del rows[index]
        elif kind == "column":
            rows[index][draw(st.integers(0, 2))] = draw(st.one_of(st.integers(-2, 21), st.just(2**63 - 1)))
        else:
            row, col, size = rows.pop(index)
            half = size // 2
            rows[index:index] = [[row + a, col + b, half] for a in (0, half) for b in (0, half)]
    return grid, rows


@given(case=spoiled())
def test_validate_refuses_exactly_what_is_no_tiling_in_order(case):
    grid, rows = case
    layout = layout_of(grid, rows)
    # a patch outside the grid is never walked cell by cell: it may be astronomically large
    inside = all(0 <= row <= 40 and 0 <= col <= 40 and size <= 40 for row, col, size in rows)
    if inside and references.is_layout([tuple(row) for row in rows], grid):
        layout.validate()
    else:
        with pytest.raises(InvalidLayoutError):
            layout.validate()


GOOD = [(0, 0, 2), (0, 2, 1), (0, 3, 1), (1, 2, 1), (1, 3, 1), (2, 0, 2), (2, 2, 2)]
RASTER = [(row, col, 1) for row in range(2) for col in range(4)]  # plain raster order is not canonical order
ADVICE = "use the `image_patch_layout` that the processor returned for this image"


def edited(index: int, *patch: int) -> list:
    return [patch if i == index else old for i, old in enumerate(GOOD)]


@pytest.mark.parametrize(
    ("patches", "grid", "message"),
    [
        (edited(1, 0, 2, 0), (4, 4), "patch 1 of the layout, (row, col, size) = (0, 2, 0), has a size below 1"),
        (edited(1, 0, 2, -1), (4, 4), "(0, 2, -1), has a size below 1"),
        (edited(5, 2, 0, 3), (4, 4), "patch 5 of the layout, (row, col, size) = (2, 0, 3), has a size that is not a"),
        (edited(0, -2, 0, 2), (4, 4), "patch 0 of the layout, (row, col, size) = (-2, 0, 2), lies outside its grid"),
        (edited(0, 0, -2, 2), (4, 4), "(0, -2, 2), lies outside its grid (4×4 base cells)"),
        (edited(6, 4, 2, 2), (4, 4), "(4, 2, 2), lies outside its grid"),
        (edited(6, 2, 4, 2), (4, 4), "(2, 4, 2), lies outside its grid"),
        (edited(6, 2**63 - 1, 2, 1), (4, 4), "lies outside its grid"),
        (edited(6, 2, 2**63 - 1, 1), (4, 4), "lies outside its grid"),
        (edited(6, 2, 2, 2**62), (4, 4), "lies outside its grid"),
        (GOOD, (4, 2), "patch 1 of the layout, (row, col, size) = (0, 2, 1), lies outside its grid (4×2 base cells)"),
        (edited(5, 1, 0, 2), (4, 4), "patch 5 of the layout, (row, col, size) = (1, 0, 2), is not aligned"),
        (edited(5, 2, 1, 2), (4, 4), "(2, 1, 2), is not aligned to its own size"),
        ([*GOOD[:2], *reversed(GOOD[2:4]), *GOOD[4:]], (4, 4), "patch 3 of the layout, (row, col, size) = (0, 3, 1)"),
        ([*GOOD, GOOD[-1]], (4, 4), "patch 7 of the layout, (row, col, size) = (2, 2, 2), is out of canonical order"),
        (RASTER, (2, 4), "patch 4 of the layout, (row, col, size) = (1, 0, 1), is out of canonical order"),
        (GOOD[:-1], (4, 4), "base cell (2, 2) of the 4×4 grid is covered 0 times, expected once"),
        ([(0, 0, 4), *GOOD[1:]], (4, 4), "base cell (0, 2) of the 4×4 grid is covered 2 times, expected once"),
        ([], (4, 4), "base cell (0, 0) of the 4×4 grid is covered 0 times"),
        (GOOD, (4, 6), "base cell (0, 4) of the 4×6 grid is covered 0 times"),
    ],
)
def test_refusals_name_the_patch(patches, grid, message):
    with pytest.raises(InvalidLayoutError, match=re.escape(message)) as refusal:
        layout_of(grid, patches).validate()
    assert ADVICE in str(refusal.value)
    assert isinstance(refusal.value, ValueError)


def test_the_unspoiled_tiling_is_accepted():
    layout_of((4, 4), GOOD).validate()


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2, 3), (2, 4)])
def test_shape_is_checked_at_once(shape):
    with pytest.raises(InvalidLayoutError, match=re.escape(f"columns (row, col, size), got {shape}")):
        PatchLayout((2, 2), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_dtype_is_checked_at_once(dtype):
    with pytest.raises(InvalidLayoutError, match=f"int64, got {dtype}"):
        PatchLayout((1, 1), torch.zeros(1, 3, dtype=dtype))


def test_to_masks_refuses_to_lose_patches():
    with pytest.raises(InvalidLayoutError, match=r"size \[2\] that 1 scales cannot express; ask for more scales"):
        layout_of((4, 4), GOOD).to_masks(14, 1)


@pytest.mark.cuda
@given(tiling=tilings(even=True))
def test_cuda_gives_the_same_views(tiling):
    grid, patches = tiling
    here = layout_of(grid, patches)
    there = PatchLayout(grid, here.patches.cuda())
    there.validate()
    for view in ("centres", "merger_index", "language_cells", "owner"):
        assert getattr(there, view).is_cuda
        assert torch.equal(getattr(there, view).cpu(), getattr(here, view))
    assert torch.equal(PatchLayout.uniform(grid, "cuda").patches.cpu(), PatchLayout.uniform(grid).patches)
    masks = here.to_masks(14, 4)
    assert torch.equal(PatchLayout.from_masks({k: v.cuda() for k, v in masks.items()}).patches.cpu(), here.patches)
    assert torch.equal(PatchLayout.unpack(there.patches, [grid])[0].patches, here.patches)
    grids = torch.tensor([[1, *grid]])
    assert PatchLayout.language_tokens_per_image(there.patches, grids.cuda()) == [here.num_language_tokens]
