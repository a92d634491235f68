"""Bilinear scaling up of many small rasters on a device.

torch's own kernel has a thread for each pixel of one raster, and every thread goes through all rasters of the batch,
one after the other: thousands of cells of 14 × 14 pixels keep a GPU busy with next to no threads.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def scale_up(rasters: Tensor, size: int) -> Tensor:
    """As `interpolate(mode="bilinear", align_corners=False)`, to the bit where nothing has to be rounded.

    Args:
        rasters: `(n, c, p, p)` floating point.
        size: how often wider the result is.

    Returns:
        `(n, c, size · p, size · p)`.
    """
    own, beside, weights = _neighbours(rasters.shape[-1], size, rasters.device)
    weights = weights.to(rasters.dtype)
    rows = torch.lerp(rasters.index_select(-2, own), rasters.index_select(-2, beside), weights.unsqueeze(1))
    return torch.lerp(rows.index_select(-1, own), rows.index_select(-1, beside), weights)


@lru_cache(maxsize=16)
def _neighbours(width: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of every fine pixel of a line: the coarse one that it lies in, the next one, and how much of that shines in.

    The centre of fine pixel j of a coarse one lies (2 j + 1 − size) / (2 size) of its width beside its own centre.
    Beyond the edge the outermost pixel stands in.
    """
    fine = torch.arange(width * size, device=device)
    own, shift = fine // size, 2 * (fine % size) + 1 - size
    return own, (own + shift.sign()).clamp(0, width - 1), shift.abs().float() / (2 * size)
