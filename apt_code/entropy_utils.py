"""Importance maps: for each cell of each scale, how much is at stake in keeping that cell whole.

Axis legend: `b` images of one shape, `H W` pixels, `h w` base grid, `p` side of a cell in pixels.
Every map function takes `(b, c, H, W)` images with values in [0, 255] and returns `{cell side in px: (b, h, w)}`
float32 maps whose grid is rounded up; a cell that sticks out of the image has importance `pad_value`. Selection does
not know which map it was given, so a new map is one function here and one row in `IMPORTANCE_METHODS`.

The sums behind the maps are exact for integer pixels, so the maps do not depend on the device, on the order of
summation, or on the neighbours in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.compilation import can_compile
from apt_code.patch_selection import PAD_VALUE as PAD_VALUE
from apt_code.patch_selection import (  # noqa: F401  the founding documents import these from here
    select_patches_by_budget,
    select_patches_by_threshold,
    select_patches_by_threshold_v2,
)

GREY_WEIGHTS = (2989, 5870, 1140)
"""ITU-R BT.601 luma, in ten-thousandths: 0.2989 R + 0.5870 G + 0.1140 B."""
GREY_SCALE = 10_000
ENTROPY_FRACTION_BITS = 32


def _check_images(images: Tensor, patch_size: int, num_scales: int) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have shape (batch, channels, height, width) with 1 or 3 channels, got {tuple(images.shape)}; "
            "convert to RGB, channels first"
        )
    if len(images) == 0:
        raise ValueError(f"images is an empty batch, expected at least one image, got {tuple(images.shape)}")
    if patch_size < 1 or num_scales < 1:
        raise ValueError(f"patch_size and num_scales are at least 1, got {patch_size} and {num_scales}")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinite pixels; expected finite values in [0, 255]")


def _grey(images: Tensor) -> Tensor:
    """`(b, c, H, W)` -> `(b, H, W)` grey level in ten-thousandths: int64 for integer pixels, else float64."""
    exact = images.to(torch.float64 if images.is_floating_point() else torch.int64)
    red, green, blue = exact.expand(-1, 3, -1, -1).unbind(1)
    return GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue


def _pooled_sum(values: Tensor) -> Tensor:
    """Sum over 2×2 cells, dropping a last odd row or column: `(b, h, w, ...)` -> `(b, h//2, w//2, ...)`."""
    h, w = values.shape[1] // 2 * 2, values.shape[2] // 2 * 2
    cells = values[:, :h, :w]
    return cells[:, ::2, ::2] + cells[:, ::2, 1::2] + cells[:, 1::2, ::2] + cells[:, 1::2, 1::2]


def _round_up(complete: Tensor, height: int, width: int, side: int, pad_value: float) -> Tensor:
    """Complete cells `(b, H//p, W//p)` -> float32 map of all cells, `(b, ceil(H/p), ceil(W/p))`."""
    rows, cols = -(-height // side), -(-width // side)
    padding = (0, cols - complete.shape[2], 0, rows - complete.shape[1])
    return F.pad(complete.float(), padding, value=pad_value)


@lru_cache(maxsize=8)
def _count_log_table(largest: int) -> Tensor:
    """`c · log2 c` for c = 0..largest, in fixed point, so that sums of it are exact in any order."""
    # One scalar logarithm at a time: a vectorised one rounds differently in the middle and at the end of an array.
    exact = [0.0] + [count * math.log2(count) for count in range(1, largest + 1)]
    return torch.tensor([round(value * 2.0**ENTROPY_FRACTION_BITS) for value in exact], dtype=torch.int64)


def compute_patch_entropy_batched(
    images: Tensor,
    patch_size: int = 16,
    num_scales: int = 3,
    bins: int = 512,
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
        ValueError: not a batch of 1- or 3-channel images, or a non-finite pixel.
    """
    _check_images(images, patch_size, num_scales)
    if bins < 1:
        raise ValueError(f"bins is at least 1, got {bins}")
    height, width = images.shape[-2:]
    sides = [patch_size * 2**scale for scale in range(num_scales)]
    table = _count_log_table(sides[-1] ** 2)
    count = _entropy_sums_compiled if can_compile(images) else _entropy_sums
    sums = [count(image, patch_size, num_scales, bins, table) for image in images.contiguous()]
    maps = {}
    for scale, side in enumerate(sides):
        missing = int(table[side * side]) - torch.stack([found[scale] for found in sums])  # N log2 N − Σ c log2 c
        entropy = missing.double() * (2.0**-ENTROPY_FRACTION_BITS / (side * side))
        maps[side] = _round_up(entropy, height, width, side, pad_value)
    return maps


def _entropy_sums(image: Tensor, patch_size: int, num_scales: int, bins: int, table: Tensor) -> list[Tensor]:
    """`Σ table[count]` over each complete cell's histogram: `(c, H, W)` -> `(rows, cols)` int64 per scale."""
    rows, cols = image.shape[-2] // patch_size, image.shape[-1] // patch_size
    grey = _grey(image[None, :, : rows * patch_size, : cols * patch_size])
    bin_index = torch.div(grey * bins, 255 * GREY_SCALE, rounding_mode="floor").clamp_(0, bins - 1).long()
    # (1, H, W) -> (h w, p·p), then one flat histogram with `bins` places per cell
    cells = rearrange(bin_index, "1 (h p) (w q) -> (h w) (p q)", p=patch_size, q=patch_size)
    offset = torch.arange(rows * cols, device=image.device).unsqueeze(1) * bins
    counts = torch.bincount((cells + offset).flatten(), minlength=rows * cols * bins).view(1, rows, cols, bins)
    table = table.to(image.device)
    sums = []
    for _ in range(num_scales):
        sums.append(table[counts[0]].sum(-1))
        counts = _pooled_sum(counts)
    return sums


def _entropy_sums_compiled(image: Tensor, patch_size: int, num_scales: int, bins: int, table: Tensor) -> list[Tensor]:
    """The same sums by the compiled kernel."""
    from apt_code import kernels

    weights = np.array(GREY_WEIGHTS)
    pixels = image.expand(3, -1, -1).contiguous().numpy()  # one memory layout, so one compilation
    logs = table.numpy()
    sums = torch.from_numpy(kernels.entropy_sums(pixels, patch_size, num_scales, bins, weights, logs, np.diff(logs)))
    sides = [patch_size * 2**scale for scale in range(num_scales)]
    return [sums[i, : image.shape[-2] // side, : image.shape[-1] // side] for i, side in enumerate(sides)]


def compute_patch_laplacian_batched(
    images: Tensor, patch_size: int = 16, num_scales: int = 3, pad_value: float = PAD_VALUE
) -> dict[int, Tensor]:
    """Mean absolute response of the 4-neighbour Laplacian of the grey level, in grey levels, in [0, 1020].

    The image's border is replicated. Arguments, shapes and errors as `compute_patch_entropy_batched`.
    """
    _check_images(images, patch_size, num_scales)
    height, width = images.shape[-2:]
    grey = _grey(images).double()
    padded = F.pad(grey.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    response = (around - 4 * grey).abs()
    rows, cols = height // patch_size, width // patch_size
    cells = response[:, : rows * patch_size, : cols * patch_size]
    total = rearrange(cells, "b (h p) (w q) -> b h w (p q)", p=patch_size, q=patch_size).sum(-1)
    maps = {}
    for side in (patch_size * 2**scale for scale in range(num_scales)):
        maps[side] = _round_up(total * (1.0 / (GREY_SCALE * side * side)), height, width, side, pad_value)
        total = _pooled_sum(total)
    return maps


def compute_patch_upsample_mse_batched(
    images: Tensor, patch_size: int = 16, num_scales: int = 3, pad_value: float = PAD_VALUE
) -> dict[int, Tensor]:
    """What keeping a cell whole loses: mean squared error between it and its own coarse patch scaled back up.

    Area average down to `patch_size`, bilinear up, mean over pixels and channels, in grey levels², in [0, 255²]. The
    finest scale loses nothing: its map is 0. Arguments, shapes and errors as `compute_patch_entropy_batched`.
    """
    _check_images(images, patch_size, num_scales)
    height, width = images.shape[-2:]
    channels = images.shape[1]
    pixels = images.contiguous()  # one memory layout, so one compilation
    square_error = _square_error_compiled if can_compile(images) else _square_error
    maps = {
        patch_size: images.new_zeros((len(images), height // patch_size, width // patch_size), dtype=torch.float64)
    }
    for size in (2**scale for scale in range(1, num_scales)):
        total = torch.stack([square_error(image, patch_size, size) for image in pixels])
        maps[patch_size * size] = total.double() * (_error_unit(size) / (channels * (patch_size * size) ** 2))
    return {side: _round_up(error, height, width, side, pad_value) for side, error in maps.items()}


def _square_error(image: Tensor, patch_size: int, size: int) -> Tensor:
    """Squared error summed over each complete cell, in units of `_error_unit(size)`: `(c, H, W)` -> int64 cells."""
    side = patch_size * size
    rows, cols = image.shape[-2] // side, image.shape[-1] // side
    if rows * cols == 0:
        return image.new_zeros((rows, cols), dtype=torch.int64)
    # every cell alone, so that the scaling up never looks at its neighbours
    cells = rearrange(image[:, : rows * side, : cols * side].float(), "c (h p) (w q) -> (h w) c p q", p=side, q=side)
    restored = F.interpolate(F.avg_pool2d(cells, size), scale_factor=size, mode="bilinear", align_corners=False)
    square = (cells - restored).double().square() / _error_unit(size)
    return square.round().long().sum(dim=(1, 2, 3)).view(rows, cols)


def _square_error_compiled(image: Tensor, patch_size: int, size: int) -> Tensor:
    """The same sums by the compiled kernel."""
    from apt_code import kernels

    return torch.from_numpy(kernels.upsample_square_error(image.numpy(), patch_size, size))


def _error_unit(size: int) -> float:
    """The squared error of integer pixels is a multiple of this: an average over size², blended twice over 2 size.

    Counted in it, sums over a cell are integers that int64 holds, also for noise at 8×, which is too much for float64.
    """
    return 1.0 / (4 * size**4) ** 2


@dataclass(frozen=True)
class ImportanceMethod:
    """One row of the table of importance maps.

    Args:
        compute: `(images, patch_size, num_scales, pad_value=…)` -> maps, as the functions above.
        unit: what the map, and so a threshold on it, is measured in.
        default_thresholds: keep-whole thresholds for cells of 2, 4, … base patches; the last one serves all coarser.
        coarse_scores: whether `budget` scores a coarse cell by the map's own value there, rather than by the mean of
            its finest cells.
    """

    compute: Callable[..., dict[int, Tensor]]
    unit: str
    default_thresholds: tuple[float, ...]
    coarse_scores: bool

    def thresholds(self, num_scales: int) -> list[float]:
        """The default thresholds for `num_scales` scales, finest coarse scale first."""
        last = self.default_thresholds[-1]
        return [*self.default_thresholds, *[last] * num_scales][: num_scales - 1]


IMPORTANCE_METHODS: Mapping[str, ImportanceMethod] = {
    "entropy": ImportanceMethod(compute_patch_entropy_batched, "bits", (3.0, 2.0), coarse_scores=False),
    "laplacian": ImportanceMethod(compute_patch_laplacian_batched, "grey levels", (4.0, 4.0), coarse_scores=False),
    "upsample_mse": ImportanceMethod(
        compute_patch_upsample_mse_batched, "grey levels²", (64.0, 64.0), coarse_scores=True
    ),
}
