"""From pixels and layouts to the packed sequence of patches.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches, `p` base patch side, `s` patch size in
base cells. Only the patches that are kept are ever read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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
    grid = (-(-images.shape[-2] // patch_size), -(-images.shape[-1] // patch_size))
    if len(layouts) != len(images) or any(layout.grid != grid for layout in layouts):
        raise ValueError(
            f"{len(images)} images of {grid[0]}×{grid[1]} base patches got layouts for the grids "
            f"{[layout.grid for layout in layouts]}; pass one layout per image, made for this image size"
        )
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
