"""Pictures of a tiling: the borders of its patches, and what is left of the pixels.

Axis legend: `c` channels, `H W` pixels.
"""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import area_average, cells_of

PATCH_COLOURS: dict[int, tuple[int, int, int]] = {
    1: (255, 214, 10),  # yellow
    2: (0, 200, 255),  # cyan
    4: (255, 45, 170),  # magenta
    8: (80, 255, 80),  # green
}
"""Border colour by patch size in base cells."""


def reconstruct(image: Tensor, layout: PatchLayout, patch_size: int) -> Tensor:
    """What the model can still see: every coarse patch as its area average, at full size.

    Args:
        image: `(c, H, W)`, values in [0, 255]; the image the layout was made for.
        layout: its tiling.
        patch_size: side of a base patch in pixels.

    Returns:
        `(c, H, W)` uint8.
    """
    height, width = image.shape[-2:]
    seen = image.float().clone()
    for size in layout.patches_by_size:
        if size == 1:
            continue
        side = patch_size * size
        chosen = layout.patches[layout.sizes == size] // size
        averages = area_average(cells_of(image.unsqueeze(0), side)[0, chosen[:, 0], chosen[:, 1]], size)
        blocks = averages.repeat_interleave(size, 2).repeat_interleave(size, 3)
        for (row, col, _), block in zip(chosen.tolist(), blocks, strict=True):
            seen[:, row * side : (row + 1) * side, col * side : (col + 1) * side] = block
    return seen[:, :height, :width].round().clamp(0, 255).to(torch.uint8)


def draw_tiling(image: Tensor, layout: PatchLayout, patch_size: int, scale: int = 2) -> Image.Image:
    """The image with the border of every patch, coloured by size, on a dark rim that shows on light and dark alike.

    Args:
        image: `(c, H, W)`, values in [0, 255].
        layout: its tiling.
        patch_size: side of a base patch in pixels.
        scale: how many times larger the picture is, so that 14-px patches keep room inside their borders.
    """
    picture = to_picture(image)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    unit = patch_size * scale
    # small first, so that the wider borders of large patches stay on top
    for row, col, size in sorted(layout.patches.tolist(), key=lambda patch: patch[2]):
        left, top = col * unit, row * unit
        box = (left, top, left + size * unit - 1, top + size * unit - 1)
        draw.rectangle(box, outline=(0, 0, 0))
        inner = tuple(edge + inset for edge, inset in zip(box, (1, 1, -1, -1), strict=True))
        draw.rectangle(inner, outline=PATCH_COLOURS[size], width=min(size, 2))
    return picture


def to_picture(image: Tensor) -> Image.Image:
    """`(c, H, W)` values in [0, 255] -> an RGB picture."""
    pixels = image.expand(3, -1, -1).float().round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
