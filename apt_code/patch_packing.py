"""From pixels and layouts to the packed sequence of patches.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches, `p` base patch side, `s` patch size in
base cells, `t` frames. Only the patches that are kept are ever read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.device import on_device
from apt_code.patch_layout import PatchLayout


def cells_of(images: Tensor, side: int) -> Tensor:
    """View images as cells: `(b, c, H, W)` -> `(b, rows, cols, c, side, side)`, zero-padded up to whole cells."""
    padding = (0, -images.shape[-1] % side, 0, -images.shape[-2] % side)
    padded = F.pad(images, padding) if any(padding) else images
    return rearrange(padded, "b c (h p) (w q) -> b h w c p q", p=side, q=side)


def area_average(cells: Tensor, size: int) -> Tensor:
    """Average every `size × size` block of pixels: `(n, c, s·p, s·p)` -> `(n, c, p, p)` float32."""
    pixels = cells if cells.dtype == torch.float32 else cells.float()
    return pixels if size == 1 else F.avg_pool2d(pixels, size)


def pack_patches(images: Tensor, layouts: Sequence[PatchLayout], patch_size: int) -> Tensor:
    """The patches of all images in canonical order, each on a base-patch raster.

    Args:
        images: `(b, c, H, W)`, any real dtype; sides that are not multiples of the patch are zero-padded.
        layouts: one per image, each for the grid `(ceil(H / patch_size), ceil(W / patch_size))`.
        patch_size: side of a base patch in pixels.

    Returns:
        `(n, c, patch_size, patch_size)` float32; a patch of size s > 1 is the area average of its pixels.

    Raises:
        ValueError: a layout for another grid, or not one layout per image.
    """
    patches = patches_of(images, layouts, patch_size)
    check_places(patches, layouts)
    counts = torch.tensor([layout.num_patches for layout in layouts], device=patches.device)
    owner = torch.arange(len(layouts), device=patches.device).repeat_interleave(counts)
    packed = torch.empty(
        (len(patches), images.shape[1], patch_size, patch_size), dtype=torch.float32, device=images.device
    )
    for size in sorted({size for layout in layouts for size in layout.patches_by_size}):
        place = (patches[:, 2] == size).nonzero().squeeze(1)
        row, col, _ = patches[place].unbind(1)
        # worked out on the host, where the layouts are: a GPU only receives it, and nobody waits
        index = torch.stack([place, owner[place], row // size, col // size]).to(images.device, non_blocking=True)
        chosen = cells_of(images, patch_size * size)[index[1], index[2], index[3]]
        packed[index[0]] = area_average(chosen, size)
    return packed


Batch = tuple[Tensor, Sequence[PatchLayout], Sequence[int]]
"""Images `(b, c, H, W)`, a layout for each, and where each image's rows begin."""


@dataclass(frozen=True)
class Affine:
    """`(pixel − mean) / std` in float32, one value of each per channel, in the pixels' own unit."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Both as `(c,)` float32, for a kernel."""
        return np.array(self.mean, np.float32), np.array(self.std, np.float32)

    def of(self, pixels: Tensor) -> Tensor:
        """`(..., c, height, width)` float32."""
        mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class RowPacker:
    """Packs patches as finished model input: normalised, one row each, in canonical order.

    Args:
        patch_size: side of a base patch in pixels.
        frames: how often a patch is repeated, because a still image fills every frame of a temporal patch.
        normalise: pixelwise map of `(n, c, height, width)` float32 pixels; it may differ between channels.
        affine: what `normalise` is said to be. It is believed once it gave the bits of `normalise` for every value
            there is, and then for good: two packers with equal `affine` must have equal `normalise`.

    Bytes do not go through `normalise`: they are worked out as `affine`, or, where that is not given or not so, the
    few values that a patch's pixel can have are normalised once for all images of one packer, and looked up.
    """

    def __init__(
        self, patch_size: int, frames: int, normalise: Callable[[Tensor], Tensor], affine: Affine | None = None
    ) -> None:
        self.patch_size = patch_size
        self.frames = frames
        self.normalise = normalise
        self.affine = affine
        self._tables: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, images: Tensor, layouts: Sequence[PatchLayout]) -> list[Tensor]:
        """One `(n, c·t·p·p)` float32 tensor per image.

        Args:
            images: `(b, c, H, W)`, any real dtype; sides that are not multiples of the patch are zero-padded.
            layouts: one per image.
        """
        lengths = [layout.num_patches for layout in layouts]
        rows = torch.empty((sum(lengths), self.row_length(images)), dtype=torch.float32, device=images.device)
        self.write(images, layouts, rows, [sum(lengths[:i]) for i in range(len(lengths))])
        return list(rows.split(lengths))

    def row_length(self, images: Tensor) -> int:
        """`c·t·p·p`."""
        return images.shape[1] * self.frames * self.patch_size**2

    def write(self, images: Tensor, layouts: Sequence[PatchLayout], rows: Tensor, starts: Sequence[int]) -> None:
        """Write the rows of every image to their place among those of a whole call, so that nobody copies them again.

        Args:
            images, layouts: as `__call__`.
            rows: `(at least n, c·t·p·p)` float32, contiguous.
            starts: where each image's rows begin.
        """
        self.write_batches([(images, layouts, starts)], rows)

    def write_batches(self, batches: Sequence[Batch], rows: Tensor) -> None:
        """As `write`, for all batches `(images, layouts, starts)` of a call; no device is waited for."""
        for images, _, _ in batches:
            self._check_length(images, rows)
        if on_device(rows):
            from apt_code.device.packing import write_rows

            write_rows(batches, rows, self.patch_size, self.frames, self.normalise)
        else:
            for batch in batches:
                self._write(*batch, rows)

    def _check_length(self, images: Tensor, rows: Tensor) -> None:
        if rows.shape[1] != self.row_length(images):
            raise ValueError(
                f"images of {images.shape[1]} channel(s) make rows of {self.row_length(images)} values, got room for "
                f"{rows.shape[1]}; pass images of one number of channels, for example all in RGB"
            )

    def _write(self, images: Tensor, layouts: Sequence[PatchLayout], starts: Sequence[int], rows: Tensor) -> None:
        if not any(layout.num_patches for layout in layouts):
            return
        whole = images.shape[-2] % self.patch_size == 0 and images.shape[-1] % self.patch_size == 0
        if whole and can_compile(images):
            with contextlib.suppress(KernelFailedError):
                self._write_compiled(images, layouts, rows, starts)
                return
        patches = self.normalise(pack_patches(images, layouts, self.patch_size)).float()
        # (n, c, p, p) -> (n, c·t·p·p)
        made = patches.unsqueeze(2).expand(-1, -1, self.frames, -1, -1).reshape(len(patches), -1)
        for part, start in zip(made.split([layout.num_patches for layout in layouts]), starts, strict=True):
            rows[start : start + len(part)] = part

    def _write_compiled(
        self, images: Tensor, layouts: Sequence[PatchLayout], rows: Tensor, starts: Sequence[int]
    ) -> None:
        from apt_code import patch_packing_kernel

        patches = patches_of(images, layouts, self.patch_size).numpy()
        sizes = int(np.bitwise_or.reduce(patches[:, 2]))  # each is a bit
        if sizes < 0:
            for layout in layouts:
                layout.validate()
        largest = 1 << max(0, sizes.bit_length() - 1)
        if largest > patch_packing_kernel.SIZES[-1]:
            raise ValueError(
                f"a patch of size {largest}: expected at most {patch_packing_kernel.SIZES[-1]} base cells along a "
                "side; build the layout with fewer scales"
            )
        affine = self._believed(images.shape[1], largest)
        if affine is None:
            table, mean, std = self._table(images.shape[1], largest), _NOTHING, _NOTHING
        else:
            table, (mean, std) = _NOTHING[None], affine.arrays
        # a list becomes an array in a fifth of the time that numpy takes to add it up
        ends = np.array([*itertools.accumulate(layout.num_patches for layout in layouts)])
        good = run_kernel(
            patch_packing_kernel.gather_rows, images.contiguous().numpy(), patches, ends, np.array(starts),
            table, _averages(largest)[1], mean, std, self.patch_size, self.frames, sizes, rows.numpy(),
        )  # fmt: skip
        if not good:
            for layout in layouts:
                layout.validate()

    def _table(self, channels: int, largest: int) -> np.ndarray:
        """`(c, entries)` finished values, by size."""
        if (channels, largest) not in self._tables:
            finished = self.normalise(_averages(largest)[0].repeat(1, channels, 1, 1))
            self._tables[channels, largest] = finished[0, :, 0].float().contiguous().numpy()
        return self._tables[channels, largest]

    def _believed(self, channels: int, largest: int) -> Affine | None:
        """`affine`, if it is what `normalise` does to every value that patches up to this size can have."""
        if self.affine is None or {len(self.affine.mean), len(self.affine.std)} != {channels}:
            return None
        holds = _holds_up_to(self.affine)
        if largest not in holds:
            said = self.affine.of(_averages(largest)[0].repeat(1, channels, 1, 1))[0, :, 0].numpy()
            holds[largest] = np.array_equal(said, self._table(channels, largest))
        return self.affine if holds[largest] else None


@lru_cache(maxsize=64)
def _holds_up_to(affine: Affine) -> dict[int, bool]:
    """Whether an affine map was found to be what it is said to be, by the largest size of patches; to be added to.

    Nothing is ever taken out of it, so threads may share it: where one of them is forgotten here, it stays in use.
    """
    return {}


_NOTHING = np.empty(0, np.float32)


@lru_cache(maxsize=8)
def _averages(largest: int) -> tuple[Tensor, np.ndarray]:
    """`(1, 1, 1, entries)`: what 1, 2², … largest² bytes can average to, by their sum; and where each size begins."""
    sizes = [2**scale for scale in range(largest.bit_length())]
    values = [torch.arange(255 * size**2 + 1, dtype=torch.float32, device="cpu") / size**2 for size in sizes]
    begins = np.full(largest + 1, -1, dtype=np.int64)
    begins[sizes] = np.cumsum([0, *map(len, values[:-1])])
    return torch.cat(values).view(1, 1, 1, -1), begins


def patches_of(images: Tensor, layouts: Sequence[PatchLayout], patch_size: int) -> Tensor:
    """`(n, 3)` patches of all layouts, on the host, after checking that these are layouts for these images."""
    grid = (-(-images.shape[-2] // patch_size), -(-images.shape[-1] // patch_size))
    if len(layouts) != len(images) or any(layout.grid != grid for layout in layouts):
        raise ValueError(
            f"{len(images)} images of {grid[0]}×{grid[1]} base patches got layouts for the grids "
            f"{[layout.grid for layout in layouts]}; pass one layout per image, made for this image size"
        )
    parts = [layout.patches for layout in layouts]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).cpu().contiguous()


def check_places(patches: Tensor, layouts: Sequence[PatchLayout]) -> None:
    """Refuse patches outside their grid: cheap, for all images at once; they would read the wrong memory."""
    ends = patches[:, :2] + patches[:, 2:]
    if bool((patches < 0).any() | (ends > patches.new_tensor(layouts[0].grid)).any()):
        for layout in layouts:
            layout.validate()
