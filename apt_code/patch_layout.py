"""One image's mixed-scale tiling, and everything that follows from it.

Axis legend: `h w` base grid (cells of one base patch, 14 px for Qwen2-VL), `n` patches, `t` language tokens.
A patch of size `s` covers `s × s` base cells; its raster is always one base patch, so it costs one token in the
vision tower whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

MERGE_SIZE = 2
"""Side, in base cells, of the square whose patches become one language token (Qwen2-VL's `merge_size`)."""


class InvalidLayoutError(ValueError):
    """A patch layout does not describe a tiling of its grid, or of a part of it."""


@lru_cache(maxsize=16)
def _canonical_places(h: int, w: int, device: torch.device) -> Tensor:
    """`(h · w, 2)` int64: every base cell of an even grid in canonical order."""
    grid = torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device))
    return rearrange(grid, "(hm a wm b) rc -> (hm wm a b) rc", a=MERGE_SIZE, b=MERGE_SIZE, wm=w // MERGE_SIZE)


def corner_sizes_of(masks: Mapping[int, Tensor]) -> Tensor:
    """`(b, h, w)` map of a patch's size at its top-left cell, 0 elsewhere, from masks `{side: (b, rows, cols)}`."""
    sides = sorted(masks)
    corner_sizes = masks[sides[0]].to(torch.int32)
    for side in sides[1:]:
        size = side // sides[0]
        corner_sizes[:, ::size, ::size] += masks[side].to(torch.int32) * size
    return corner_sizes


@dataclass(frozen=True, eq=False)
class PatchLayout:
    """The tiling of one image by square patches of several sizes. Cells may be left out: see `apt_code.dropping`.

    Args:
        grid: `(h, w)`, the base grid; both at least 1.
        patches: `(n, 3)` int64, one `(row, col, size)` per patch in base-grid units, in canonical order: raster
            order of the `MERGE_SIZE`-cell that holds the patch's top-left corner, and row-major inside that cell.
            With every patch of size 1 this is Qwen2-VL's own order.

    The constructor checks shapes and types only. Layouts that come from outside go through `validate`.
    """

    grid: tuple[int, int]
    patches: Tensor

    def __post_init__(self) -> None:
        if self.patches.ndim != 2 or self.patches.shape[1] != 3:
            raise InvalidLayoutError(
                "a patch layout has shape (num_patches, 3) with columns (row, col, size), "
                f"got {tuple(self.patches.shape)}"
            )
        if self.patches.dtype != torch.int64:
            raise InvalidLayoutError(f"a patch layout is int64, got {self.patches.dtype}; convert it with .long()")

    # ---------------------------------------------------------------- construction

    @classmethod
    def uniform(cls, grid: tuple[int, int], device: torch.device | str | None = None) -> PatchLayout:
        """Every cell split down to the base patch: upstream's own sequence."""
        h, w = grid
        if h % MERGE_SIZE or w % MERGE_SIZE:
            return cls.from_corner_sizes(torch.ones(grid, dtype=torch.int64, device=device))
        places = _canonical_places(h, w, torch.device(device or "cpu"))
        return cls((h, w), F.pad(places, (0, 1), value=1))

    @classmethod
    def from_corner_sizes(cls, corner_sizes: Tensor) -> PatchLayout:
        """From an `(h, w)` map that holds a patch's size at its top-left cell and 0 elsewhere."""
        return cls.from_corner_sizes_of_batch(corner_sizes.unsqueeze(0))[0]

    @classmethod
    def from_corner_sizes_of_batch(cls, corner_sizes: Tensor) -> list[PatchLayout]:
        """One layout per image from `(b, h, w)`, as `from_corner_sizes`, at the price of one."""
        h, w = corner_sizes.shape[1:]
        ragged = h % MERGE_SIZE or w % MERGE_SIZE
        padding = (0, w % MERGE_SIZE, 0, h % MERGE_SIZE)
        padded = F.pad(corner_sizes, padding) if ragged else corner_sizes
        # (b, h, w) -> merge cells in raster order, their base cells row-major: walking it *is* the canonical order
        walk = rearrange(padded, "n (hm a) (wm b) -> n (hm wm a b)", a=MERGE_SIZE, b=MERGE_SIZE)
        places = _canonical_places(padded.shape[1], padded.shape[2], corner_sizes.device)
        kept = walk != 0
        patches = torch.cat([places.expand(len(walk), -1, -1)[kept], walk[kept].long().unsqueeze(1)], dim=1)
        return [cls((h, w), part) for part in patches.split(kept.sum(1).tolist())]

    @classmethod
    def from_masks(cls, masks: Mapping[int, Tensor]) -> PatchLayout:
        """From selection masks `{patch side in px: (rows, cols) 0/1}` of one image.

        Sides double from one scale to the next; the mask of a size-`s` patch has `ceil(h / s) × ceil(w / s)` cells.
        """
        return cls.from_masks_of_batch({side: mask.unsqueeze(0) for side, mask in masks.items()})[0]

    @classmethod
    def from_masks_of_batch(cls, masks: Mapping[int, Tensor]) -> list[PatchLayout]:
        """One layout per image from masks `(b, rows, cols)`, as `from_masks`.

        The layouts are on the host, being index arithmetic: masks on a GPU are waited for once.
        """
        return cls.from_corner_sizes_of_batch(corner_sizes_of(masks).cpu())

    @classmethod
    def unpack(
        cls, packed: Tensor, grids: Tensor | Sequence[Sequence[int]], counts: Tensor | Sequence[int] | None = None
    ) -> list[PatchLayout]:
        """Cut the concatenated layouts of several images at their image boundaries, and check each one.

        Args:
            packed: `(num_patches, 3)` int64, the layouts of all images one after the other.
            grids: `(num_images, 2)` rows `(h, w)`, or `(num_images, 3)` rows `(1, h, w)` as `image_grid_thw`.
            counts: patches of each image. With them, cells may be left out; without, the layouts tile their grids,
                and are cut by area.

        Raises:
            InvalidLayoutError: the layouts do not fit these grids, in canonical order.
        """
        # The layout is a few kilobytes: one copy to the host is cheaper than deriving anything on a device.
        packed = packed.detach().cpu()
        rows = grids.tolist() if isinstance(grids, Tensor) else grids
        for grid in rows:
            if len(grid) == 3 and grid[0] != 1:
                raise InvalidLayoutError(
                    f"image grid {tuple(grid)}: expected (1, h, w), since a layout tiles one frame; videos have no "
                    "layout, so pass the `image_grid_thw` of the processor call that made the layout"
                )
        shapes = [(int(grid[-2]), int(grid[-1])) for grid in rows]
        areas = torch.tensor([h * w for h, w in shapes], dtype=torch.int64, device="cpu")
        sizes = cls((0, 0), packed).sizes
        # Sizes that fit nowhere would hide from the count below: their squares are 0, or overflow to it.
        misfit = ((sizes < 1) | (sizes > max((max(shape) for shape in shapes), default=0))).nonzero()
        if len(misfit):
            index = int(misfit[0])
            raise InvalidLayoutError(
                f"patch {index} of the layout, (row, col, size) = {tuple(packed[index].tolist())}, has a size that "
                f"fits none of the image grids {shapes}; "
                "pass the `image_patch_layout` and `image_grid_thw` of the same processor call"
            )
        if counts is not None:
            return cls._cut(packed, shapes, counts)
        covered = (sizes**2).cumsum(0)
        total = int(covered[-1]) if len(covered) else 0
        if total != int(areas.sum()):
            raise InvalidLayoutError(
                f"the patch layout covers {total} base cells but the image grids {shapes} have {int(areas.sum())}; "
                "pass the `image_patch_layout` and `image_grid_thw` of the same processor call, and with them the "
                "`image_patch_counts` where cells were left out"
            )
        ends = torch.searchsorted(covered, areas.cumsum(0)) + 1
        lengths = ends.diff(prepend=ends.new_zeros(1))
        layouts = [cls(*part) for part in zip(shapes, packed.split(lengths.tolist()), strict=True)]
        for layout in layouts:
            layout.validate()
        return layouts

    @classmethod
    def _cut(
        cls, packed: Tensor, shapes: Sequence[tuple[int, int]], counts: Tensor | Sequence[int]
    ) -> list[PatchLayout]:
        if isinstance(counts, Tensor):
            if counts.ndim != 1 or counts.dtype != torch.int64:
                raise InvalidLayoutError(
                    f"image_patch_counts of shape {tuple(counts.shape)} and type {counts.dtype}: expected "
                    "(num_images,) and int64; pass what the processor returned"
                )
            counts = counts.tolist()
        if len(counts) != len(shapes) or min(counts, default=1) < 1 or sum(counts) != len(packed):
            raise InvalidLayoutError(
                f"image_patch_counts {list(counts)} for {len(shapes)} image grid(s) and {len(packed)} patches: "
                "expected a count of at least 1 for each image, and all patches together; pass what the processor "
                "returned"
            )
        layouts = [cls(*part) for part in zip(shapes, packed.split(list(counts)), strict=True)]
        for layout in layouts:
            layout.validate(whole=False)
        return layouts

    @staticmethod
    def language_tokens_per_image(packed: Tensor, grids: Tensor, counts: Tensor | None = None) -> list[int]:
        """Language tokens of each image of a packed layout, without unpacking (and checking) it; see `unpack`."""
        sizes = packed[:, 2]
        if counts is None:
            ends = torch.searchsorted((sizes**2).cumsum(0), grids[:, -2:].prod(1).cumsum(0)) + 1
        else:
            ends = counts.cumsum(0)
        quarter_tokens = F.pad(torch.where(sizes == 1, 1, MERGE_SIZE**2).cumsum(0), (1, 0))
        return (quarter_tokens[ends].diff(prepend=quarter_tokens[:1]) // MERGE_SIZE**2).tolist()

    # ---------------------------------------------------------------- columns and counts

    @property
    def rows(self) -> Tensor:
        """`(n,)` row of each patch's top-left cell."""
        return self.patches[:, 0]

    @property
    def cols(self) -> Tensor:
        """`(n,)` column of each patch's top-left cell."""
        return self.patches[:, 1]

    @property
    def sizes(self) -> Tensor:
        """`(n,)` side of each patch in base cells."""
        return self.patches[:, 2]

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def num_patches(self) -> int:
        """Tokens in the vision tower."""
        return len(self.patches)

    @cached_property
    def patches_by_size(self) -> dict[int, int]:
        """`{size in base cells: number of patches}`, sizes that occur only, ascending."""
        sizes, counts = torch.unique(self.sizes, return_counts=True)
        return dict(zip(sizes.tolist(), counts.tolist(), strict=True))

    @property
    def num_language_tokens(self) -> int:
        """Tokens in the language model: one per four base patches of a cell, one per coarser patch (on even grids)."""
        small = self.patches_by_size.get(1, 0)
        return self.num_patches - small + small // MERGE_SIZE**2

    @cached_property
    def dropped_cells(self) -> int:
        """Merge cells that are left out: no patch covers them."""
        covered = sum(size * size * count for size, count in self.patches_by_size.items())
        return (self.grid[0] * self.grid[1] - covered) // MERGE_SIZE**2

    @property
    def retention(self) -> float:
        """Patches kept, as a fraction of the base grid, in (0, 1]."""
        return self.num_patches / (self.grid[0] * self.grid[1])

    # ---------------------------------------------------------------- what the model asks

    @property
    def centres(self) -> Tensor:
        """`(n, 2)` float32 `(row, col)` centres in base units, for the tower's 2-D RoPE.

        A base patch's centre is its own integer coordinate, so a fully split layout has upstream's positions.
        """
        half = (self.sizes - 1).unsqueeze(1) / 2
        return self.patches[:, :2].float() + half

    @property
    def merger_index(self) -> Tensor:
        """`(4 t,)` int64: rows of the tower's output in the order the patch merger reads them, four per token.

        The four base patches of a cell stand for themselves; a coarser patch fills all four places.
        """
        index = torch.arange(self.num_patches, device=self.patches.device)
        return index.repeat_interleave(torch.where(self.sizes == 1, 1, MERGE_SIZE**2))

    @property
    def language_cells(self) -> Tensor:
        """`(t, 2)` int64 `(row, col)`, in merge cells, of each language token's top-left cell, for M-RoPE."""
        starts_token = (self.rows % MERGE_SIZE == 0) & (self.cols % MERGE_SIZE == 0)
        return self.patches[starts_token, :2] // MERGE_SIZE

    @property
    def parts(self) -> PatchLayout:
        """The base patches that coarse patches cover: of one after the other, each row by row.

        A list of places to cut pixels at, as `pack_patches` takes it, and no tiling: its order is not canonical.
        """
        coarse = self.patches[self.sizes > 1]
        areas = coarse[:, 2] ** 2
        row, col, size = coarse.repeat_interleave(areas, dim=0).unbind(1)
        number = torch.arange(len(row), device=row.device) - (areas.cumsum(0) - areas).repeat_interleave(areas)
        places = torch.stack([row + number // size, col + number % size], dim=1)
        return PatchLayout(self.grid, F.pad(places, (0, 1), value=1))

    @property
    def next_position(self) -> int:
        """How far the text after the image moves on, in M-RoPE positions: upstream's `max(h, w) // merge_size`."""
        return max(self.grid) // MERGE_SIZE

    # ---------------------------------------------------------------- other views of the same tiling

    def to_masks(self, base_patch_size: int, num_scales: int) -> dict[int, Tensor]:
        """`{patch side in px: (rows, cols) float 0/1}`, the inverse of `from_masks`."""
        h, w = self.grid
        masks = {}
        for size in (2**scale for scale in range(num_scales)):
            mask = torch.zeros(-(-h // size), -(-w // size), device=self.patches.device)
            chosen = self.patches[self.sizes == size]
            mask[chosen[:, 0] // size, chosen[:, 1] // size] = 1.0
            masks[base_patch_size * size] = mask
        missing = set(self.patches_by_size) - {2**scale for scale in range(num_scales)}
        if missing:
            raise InvalidLayoutError(
                f"the layout holds patches of size {sorted(missing)} that {num_scales} scales cannot express; "
                "ask for more scales"
            )
        return masks

    @cached_property
    def owner(self) -> Tensor:
        """`(h, w)` int64: the index of the patch that covers each base cell."""
        index, cells = self._covered_cells()
        owner = torch.full((self.grid[0] * self.grid[1],), -1, dtype=torch.int64, device=self.patches.device)
        owner[cells] = index
        return owner.reshape(self.grid)

    def _covered_cells(self) -> tuple[Tensor, Tensor]:
        """`(patch index, flat base cell)` for every base cell that a patch covers, repeated where patches overlap."""
        w = self.grid[1]
        indices, cells = [], []
        for size in self.patches_by_size:
            chosen = (self.sizes == size).nonzero().squeeze(1)
            step = torch.arange(size, device=self.patches.device)
            rows = self.rows[chosen].view(-1, 1, 1) + step.view(1, -1, 1)
            cols = self.cols[chosen].view(-1, 1, 1) + step.view(1, 1, -1)
            cells.append((rows * w + cols).flatten())
            indices.append(chosen.repeat_interleave(size * size))
        return torch.cat(indices), torch.cat(cells)

    # ---------------------------------------------------------------- trust

    def validate(self, whole: bool = True) -> None:
        """Check that the patches tile the grid, aligned to their size and in canonical order.

        Args:
            whole: every base cell is covered exactly once. If not, at most once: the base patches of a merge cell stay
                together, and the first merge cell is there.

        Raises:
            InvalidLayoutError: naming the first patch that is wrong, and what was expected.
        """
        h, w = self.grid
        if not whole and (h % MERGE_SIZE or w % MERGE_SIZE):
            raise InvalidLayoutError(
                f"an image grid of {h}×{w} base cells: expected even sides, which are made of whole merge cells; pass "
                "the `image_grid_thw` that the processor returned for this image"
            )
        rows, cols, sizes = self.patches.unbind(1)
        self._refuse(sizes < 1, "has a size below 1")
        self._refuse(sizes & (sizes - 1) != 0, "has a size that is not a power of two")
        self._refuse((rows < 0) | (cols < 0), "lies outside its grid")
        self._refuse((rows > h - sizes) | (cols > w - sizes), "lies outside its grid")  # rows + sizes could overflow
        self._refuse((rows % sizes != 0) | (cols % sizes != 0), "is not aligned to its own size")
        cells_per_row = -(-w // MERGE_SIZE)
        key = (rows // MERGE_SIZE * cells_per_row + cols // MERGE_SIZE) * MERGE_SIZE**2
        key = key + rows % MERGE_SIZE * MERGE_SIZE + cols % MERGE_SIZE
        out_of_order = torch.cat([torch.zeros_like(key[:1], dtype=torch.bool), key[1:] <= key[:-1]])
        self._refuse(out_of_order, "is out of canonical order (or listed twice)")
        covered = torch.zeros(h * w, dtype=torch.int64, device=self.patches.device)
        if len(self):
            covered = torch.bincount(self._covered_cells()[1], minlength=h * w)
        wrong = (covered != 1 if whole else self._uneven(covered)).nonzero()
        if len(wrong):
            row, col = divmod(int(wrong[0]), w)
            expected = "once"
            if not whole:
                expected += ", or not at all with its whole merge cell (the first one has to be there)"
            raise InvalidLayoutError(
                f"base cell ({row}, {col}) of the {h}×{w} grid is covered {int(covered[wrong[0]])} times, expected "
                f"{expected}; use the `image_patch_layout` that the processor returned for this image"
            )

    def _uneven(self, covered: Tensor) -> Tensor:
        """`(h · w,)` bool: base cells that a partial tiling may not cover so often."""
        cells = rearrange(covered.view(self.grid), "(hm a) (wm b) -> hm wm (a b)", a=MERGE_SIZE, b=MERGE_SIZE)
        there = (cells > 0).any(-1, keepdim=True)
        there[0, 0] = True
        wrong = torch.where(there, cells != 1, cells != 0)
        return rearrange(wrong, "hm wm (a b) -> (hm a wm b)", a=MERGE_SIZE, b=MERGE_SIZE)

    def _refuse(self, wrong: Tensor, why: str) -> None:
        if bool(wrong.any()):
            index = int(wrong.nonzero()[0])
            raise InvalidLayoutError(
                f"patch {index} of the layout, (row, col, size) = {tuple(self.patches[index].tolist())}, {why} "
                f"({self.grid[0]}×{self.grid[1]} base cells); "
                "use the `image_patch_layout` that the processor returned for this image"
            )
