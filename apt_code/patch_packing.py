"""From pixels and layouts to the packed sequence of patches.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches, `p` base patch side, `s` patch size in
base cells, `t` frames. Only the patches that are kept are ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.compilation import can_compile
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
    _check_layouts(images, layouts, patch_size)
    rows = torch.cat([layout.patches for layout in layouts]).to(images.device)
    counts = torch.tensor([layout.num_patches for layout in layouts])
    owner = torch.arange(len(layouts)).repeat_interleave(counts).to(images.device)
    packed = torch.empty(
        (len(rows), images.shape[1], patch_size, patch_size), dtype=torch.float32, device=images.device
    )
    for size in sorted({size for layout in layouts for size in layout.patches_by_size}):
        place = (rows[:, 2] == size).nonzero().squeeze(1)
        row, col, _ = rows[place].unbind(1)
        chosen = cells_of(images, patch_size * size)[owner[place], row // size, col // size]
        packed[place] = area_average(chosen, size)
    return packed


class RowPacker:
    """Packs patches as finished model input: normalised, one row each, in canonical order.

    Args:
        patch_size: side of a base patch in pixels.
        frames: how often a patch is repeated, because a still image fills every frame of a temporal patch.
        normalise: pixelwise map of `(n, c, height, width)` float32 pixels; it may differ between channels.

    Bytes are not normalised pixel by pixel: the few values that a patch's pixel can have are, once for all images that
    one packer sees, and the rest is looking up.
    """

    def __init__(self, patch_size: int, frames: int, normalise: Callable[[Tensor], Tensor]) -> None:
        self.patch_size = patch_size
        self.frames = frames
        self.normalise = normalise
        self._tables: dict[tuple[int, int], tuple[Tensor, np.ndarray]] = {}

    def __call__(self, images: Tensor, layouts: Sequence[PatchLayout]) -> list[Tensor]:
        """One `(n, c·t·p·p)` float32 tensor per image.

        Args:
            images: `(b, c, H, W)`, any real dtype; sides that are not multiples of the patch are zero-padded.
            layouts: one per image.
        """
        lengths = [layout.num_patches for layout in layouts]
        whole = images.shape[-2] % self.patch_size == 0 and images.shape[-1] % self.patch_size == 0
        if whole and can_compile(images):
            return self._look_up(images, layouts, lengths)
        patches = self.normalise(pack_patches(images, layouts, self.patch_size)).float()
        # (n, c, p, p) -> (n, c·t·p·p)
        rows = patches.unsqueeze(2).expand(-1, -1, self.frames, -1, -1).reshape(len(patches), -1)
        return list(rows.split(lengths))

    def _look_up(self, images: Tensor, layouts: Sequence[PatchLayout], lengths: list[int]) -> list[Tensor]:
        from apt_code import kernels

        _check_layouts(images, layouts, self.patch_size)
        channels = images.shape[1]
        table, starts = self._table(channels, max(max(layout.patches_by_size) for layout in layouts))
        rows = [torch.empty((length, channels * self.frames * self.patch_size**2)) for length in lengths]
        for image, layout, out in zip(images.contiguous(), layouts, rows, strict=True):
            patches = layout.patches.numpy()
            kernels.gather_rows(
                image.numpy(), patches, table.numpy(), starts, self.patch_size, self.frames, out.numpy()
            )
        return rows

    def _table(self, channels: int, largest: int) -> tuple[Tensor, np.ndarray]:
        """`(c, entries)` finished values, and where each size's begin: averages of size² bytes, by their sum."""
        if (channels, largest) not in self._tables:
            sizes = [2**scale for scale in range(largest.bit_length())]
            values = [torch.arange(255 * size**2 + 1, dtype=torch.float32) / size**2 for size in sizes]
            starts = np.zeros(largest + 1, dtype=np.int64)
            starts[sizes[1:]] = np.cumsum([len(value) for value in values[:-1]])
            finished = self.normalise(torch.cat(values).expand(1, channels, 1, -1).contiguous())
            self._tables[channels, largest] = finished[0, :, 0].float().contiguous(), starts
        return self._tables[channels, largest]


def _check_layouts(images: Tensor, layouts: Sequence[PatchLayout], patch_size: int) -> None:
    grid = (-(-images.shape[-2] // patch_size), -(-images.shape[-1] // patch_size))
    if len(layouts) != len(images) or any(layout.grid != grid for layout in layouts):
        raise ValueError(
            f"{len(images)} images of {grid[0]}×{grid[1]} base patches got layouts for the grids "
            f"{[layout.grid for layout in layouts]}; pass one layout per image, made for this image size"
        )
    for layout in layouts:  # cheap, and the compiled kernel relies on it
        ends = layout.patches[:, :2] + layout.sizes.unsqueeze(1)
        if bool((layout.patches < 0).any() | (ends > torch.tensor(grid, device=ends.device)).any()):
            layout.validate()
