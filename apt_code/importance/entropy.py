"""`entropy`: how many bits the grey levels of a cell take.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `h w` cells of one scale, `p` side of a cell in px.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.importance.common import (
    GREY_SCALE,
    GREY_WEIGHTS,
    PAD_VALUE,
    check_cells,
    checked,
    empty_map,
    grey_of,
    in_parts,
    pooled_sum,
    round_up,
)

BINS = 512
"""How many bins the histograms have by default."""
ENTROPY_FRACTION_BITS = 32


def compute_patch_entropy_batched(
    images: Tensor,
    patch_size: int = 16,
    num_scales: int = 3,
    bins: int = BINS,
    pad_value: float = PAD_VALUE,
) -> dict[int, Tensor]:
    """Shannon entropy of the grey level in every cell, in bits.

    `H = −Σ pᵢ log2 pᵢ` over the histogram of the cell's grey levels in `bins` equal bins of [0, 255]. Counts of a
    coarse cell are sums of its fine cells' counts, and `N·H = N log2 N − Σ cᵢ log2 cᵢ`.

    Args:
        images: `(b, c, H, W)`, 1 or 3 channels, values in [0, 255], integer or floating point; values outside are
            counted in the nearest bin.
        patch_size: side of the finest cell in pixels.
        num_scales: cells of side `patch_size · 2^i` for i = 0 … num_scales − 1.
        bins: histogram bins.
        pad_value: importance of a cell that sticks out of the image; the selection rules recognise the default.

    Returns:
        `{side: (b, ceil(H/side), ceil(W/side))}` float32, in [0, log2(min(bins, side²))] or `pad_value`.

    Raises:
        ValueError: not a batch of 1- or 3-channel images, a non-finite pixel, or cells too large for exact sums.
    """
    images, _ = checked(images, patch_size, num_scales)
    if bins < 1:
        raise ValueError(f"bins is at least 1, got {bins}")
    height, width = images.shape[-2:]
    sides = [patch_size * 2**scale for scale in range(num_scales)]
    # Σ c log2 c of a cell is at most N log2 N: 63 bits hold that of cells of up to 9,038 px
    check_cells(images, sides, lambda side: _count_log(side * side) < 2**63, "entropy")
    if _fits_entropy_kernel(images, sides[-1], bins):
        with contextlib.suppress(KernelFailedError):
            return _entropies_compiled(images, sides, bins, pad_value)
    found = _entropies(images, sides, bins)
    return {side: round_up(bits, height, width, side, pad_value) for side, bits in zip(sides, found, strict=True)}


def _count_log(count: int) -> int:
    """`c · log2 c` in fixed point, so that sums of it are exact in any order."""
    return round(count * math.log2(count) * 2.0**ENTROPY_FRACTION_BITS) if count else 0


@lru_cache(maxsize=8)
def _count_log_table(largest: int, device: torch.device) -> Tensor:
    """`_count_log` for c = 0..largest, once per device."""
    # One scalar logarithm at a time: a vectorised one rounds differently in the middle and at the end of an array.
    return torch.tensor([_count_log(count) for count in range(largest + 1)], dtype=torch.int64, device=device)


def _bits_per_unit(side: int) -> float:
    return 2.0**-ENTROPY_FRACTION_BITS / (side * side)


def _entropies(images: Tensor, sides: Sequence[int], bins: int) -> list[Tensor]:
    """The entropy of each complete cell: `(b, c, H, W)` -> `(b, rows, cols)` float64 per side.

    One scatter for all cells of all images, and nothing that a GPU would have to wait for.
    """
    patch_size = sides[0]
    rows, cols = images.shape[-2] // patch_size, images.shape[-1] // patch_size
    # of the largest complete cell, since that of a larger one would take long
    most = max([side * side for side in sides if side <= min(images.shape[-2:])], default=1)
    table = _count_log_table(most, images.device)

    def entropies_of(part: Tensor) -> list[Tensor]:
        grey = grey_of(part[:, :, : rows * patch_size, : cols * patch_size])
        bin_index = torch.div(grey * bins, 255 * GREY_SCALE, rounding_mode="floor").clamp_(0, bins - 1).long()
        # (b, H, W) -> (b h w, p·p), then one flat histogram with `bins` places per cell
        cells = rearrange(bin_index, "b (h p) (w q) -> (b h w) (p q)", p=patch_size, q=patch_size)
        places = (cells + torch.arange(len(cells), device=part.device).unsqueeze(1) * bins).flatten()
        counts = torch.zeros(len(cells) * bins, dtype=torch.int32, device=part.device)
        counts.scatter_add_(0, places, counts.new_ones(1).expand(len(places)))
        counts = counts.view(len(part), rows, cols, bins)
        bits = []
        for side in sides:
            missing = _count_log(min(side * side, most)) - table[counts.long()].sum(-1)  # N log2 N − Σ c log2 c
            bits.append(missing.double() * _bits_per_unit(side))
            counts = pooled_sum(counts)
        return bits

    return in_parts(images, entropies_of)


def _fits_entropy_kernel(images: Tensor, coarsest: int, bins: int) -> bool:
    if not can_compile(images):
        return False
    from apt_code.importance import entropy_kernel

    return bins <= entropy_kernel.MOST_BINS and coarsest**2 <= entropy_kernel.MOST_PIXELS


def _entropies_compiled(images: Tensor, sides: Sequence[int], bins: int, pad_value: float) -> dict[int, Tensor]:
    """The finished maps by the compiled kernel."""
    from apt_code.importance import entropy_kernel

    pixels = images.expand(-1, 3, -1, -1).contiguous().numpy()  # one memory layout, so one compilation
    maps = {side: empty_map(images, side, pad_value) for side in sides}
    constants = _entropy_constants(tuple(sides), bins)
    work = entropy_kernel.working_arrays(images.shape[-1], sides[0], len(sides), bins)
    run_kernel(entropy_kernel.entropies, pixels, sides[0], bins, *constants, *work, tuple(maps.values()))
    return {side: torch.from_numpy(found) for side, found in maps.items()}


@lru_cache(maxsize=8)
def _entropy_constants(sides: tuple[int, ...], bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey weights, `c log2 c` and bits per unit, as the kernel takes them."""
    table = _count_log_table(sides[-1] ** 2, torch.device("cpu")).numpy()
    return np.array(GREY_WEIGHTS) * bins, table, np.array([_bits_per_unit(side) for side in sides])
