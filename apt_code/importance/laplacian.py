"""`laplacian`: how much the grey levels of a cell bend.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `h w` cells of one scale, `p` side of a cell in px.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.importance.common import (
    GREY_SCALE,
    GREY_WEIGHTS,
    PAD_VALUE,
    check_cells,
    checked,
    grey_of,
    pooled_sum,
    round_up,
)


def compute_patch_laplacian_batched(
    images: Tensor, patch_size: int = 16, num_scales: int = 3, pad_value: float = PAD_VALUE
) -> dict[int, Tensor]:
    """Mean absolute response of the 4-neighbour Laplacian of the grey level, in grey levels, in [0, 1020].

    The image's border is replicated. Arguments, shapes and errors as `compute_patch_entropy_batched`.
    """
    images, span = checked(images, patch_size, num_scales)
    height, width = images.shape[-2:]
    if not images.is_floating_point():
        # 53 bits hold the sum over a cell of up to 29,717 px, each pixel at most four times the span
        highest = 4 * sum(GREY_WEIGHTS) * span
        sides = [patch_size * 2**scale for scale in range(num_scales)]
        check_cells(images, sides, lambda side: highest * side * side < 2**53, "laplacian")
    grey = grey_of(images).double()
    padded = F.pad(grey.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    response = (around - 4 * grey).abs()
    rows, cols = height // patch_size, width // patch_size
    cells = response[:, : rows * patch_size, : cols * patch_size]
    total = rearrange(cells, "b (h p) (w q) -> b h w (p q)", p=patch_size, q=patch_size).sum(-1)
    maps = {}
    for side in (patch_size * 2**scale for scale in range(num_scales)):
        maps[side] = round_up(total * (1.0 / (GREY_SCALE * side * side)), height, width, side, pad_value)
        total = pooled_sum(total)
    return maps
