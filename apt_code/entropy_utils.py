"""Importance maps: for each cell of each scale, how much is at stake in keeping that cell whole.

Axis legend: `b` images of one shape, `H W` pixels, `h w` base grid, `p` side of a cell in pixels.
Every map function takes `(b, c, H, W)` images with values in [0, 255] and returns `{cell side in px: (b, h, w)}`
float32 maps whose grid is rounded up; a cell that sticks out of the image has importance `pad_value`. Selection does
not know which map it was given, so a new map is one function here and one row in `IMPORTANCE_METHODS`.

The sums behind the maps are exact for integer pixels, so the maps do not depend on the device, on the order of
summation, or on the neighbours in the batch. Where cells are too large for that, they are refused. Maps have no
gradient: they say which cells to split, and that has none.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.exact_sum import exact_sum
from apt_code.patch_selection import PAD_VALUE as PAD_VALUE
from apt_code.patch_selection import (  # noqa: F401  the founding documents import these from here
    select_patches_by_budget,
    select_patches_by_threshold,
    select_patches_by_threshold_v2,
)

GREY_WEIGHTS = (2989, 5870, 1140)
"""ITU-R BT.601 luma, in ten-thousandths: 0.2989 R + 0.5870 G + 0.1140 B."""
GREY_SCALE = 10_000
BINS = 512
"""How many bins the histograms of `entropy` have by default."""
ENTROPY_FRACTION_BITS = 32
LARGEST_PIXEL = 2.0**16
"""Pixels further from 0 than this, which are no grey levels in any unit, count as this, so that no sum overflows."""
MOST_SCALES_OF_ERROR = 4
"""Up to 8× cells, `upsample_mse` of integer pixels is exact: its numbers fit float32, and their squares float64."""
PIXELS_AT_ONCE = 2**24
"""How many pixels the plain code, which holds several numbers per pixel, works on at a time."""


def _checked(images: Tensor, patch_size: int, num_scales: int) -> tuple[Tensor, float]:
    """The images without their gradient, and how far their extreme values can lie apart, after checking them."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have shape (batch, channels, height, width) with 1 or 3 channels, got {tuple(images.shape)}; "
            "convert to RGB, channels first"
        )
    if len(images) == 0:
        raise ValueError(f"images is an empty batch, expected at least one image, got {tuple(images.shape)}")
    if patch_size < 1 or num_scales < 1:
        raise ValueError(f"patch_size and num_scales are at least 1, got {patch_size} and {num_scales}")
    images = images.detach()
    if images.dtype == torch.uint8 or images.numel() == 0:
        return images, 255.0
    # not every integer type has extremes; NaN comes through; a GPU is waited for once
    lowest, highest = torch.stack((images if images.is_floating_point() else images.double()).aminmax()).tolist()
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(
            "images hold NaN or infinite pixels; expected finite values in [0, 255]: replace them (torch.nan_to_num), "
            "or leave the image as it is with the method 'off'"
        )
    if not are_grey_levels(lowest, highest):
        # the same text whatever the image, so that Python's filter says it once, not for each of a thousand images
        warnings.warn(
            "images hold pixels of another range, expected grey levels from 0 to 255: their importance says little, "
            "and most cells will stay whole; multiply images in [0, 1] by 255",
            stacklevel=3,
        )
    if max(-lowest, highest) > LARGEST_PIXEL:
        return images.double().clamp(-LARGEST_PIXEL, LARGEST_PIXEL), 2 * LARGEST_PIXEL
    return images, highest - lowest


def _check_cells(images: Tensor, sides: Sequence[int], fits: Callable[[int], bool], name: str) -> None:
    """Refuse cells so large that the sums of `name` over one of them would not be exact."""
    complete = [side for side in sides if side <= min(images.shape[-2:])]
    if complete and not fits(complete[-1]):
        raise ValueError(
            f"cells of {complete[-1]}×{complete[-1]} px are too large for exact sums of {name!r}; "
            "take a smaller patch_size or fewer scales"
        )


def are_grey_levels(lowest: Any, highest: Any) -> Any:
    """Whether an image with these extreme values (numbers or tensors) can be one in [0, 255].

    Bicubic resizing overshoots a little, but not without anything bright. An image of one value may be any.
    """
    slack = 0.05 * 255
    bright = (highest > 1) & ((lowest >= 0) | (highest > slack))
    return (lowest >= -slack) & (highest <= 255 + slack) & (bright | (highest == lowest))


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
    return F.pad(complete.float(), padding, value=pad_value) if any(padding) else complete.float()


def _count_log(count: int) -> int:
    """`c · log2 c` in fixed point, so that sums of it are exact in any order."""
    return round(count * math.log2(count) * 2.0**ENTROPY_FRACTION_BITS) if count else 0


@lru_cache(maxsize=8)
def _count_log_table(largest: int, device: torch.device) -> Tensor:
    """`_count_log` for c = 0..largest, once per device."""
    # One scalar logarithm at a time: a vectorised one rounds differently in the middle and at the end of an array.
    return torch.tensor([_count_log(count) for count in range(largest + 1)], dtype=torch.int64, device=device)


def _in_parts(images: Tensor, work: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
    """`work` on a few images of the batch at a time, so that what it needs on the way stays bounded."""
    at_once = max(1, PIXELS_AT_ONCE // max(1, images.shape[-2] * images.shape[-1]))
    return [torch.cat(found) for found in zip(*map(work, images.split(at_once)), strict=True)]


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
    images, _ = _checked(images, patch_size, num_scales)
    if bins < 1:
        raise ValueError(f"bins is at least 1, got {bins}")
    height, width = images.shape[-2:]
    sides = [patch_size * 2**scale for scale in range(num_scales)]
    # Σ c log2 c of a cell is at most N log2 N: 63 bits hold that of cells of up to 9,038 px
    _check_cells(images, sides, lambda side: _count_log(side * side) < 2**63, "entropy")
    if _fits_entropy_kernel(images, sides[-1], bins):
        with contextlib.suppress(KernelFailedError):
            return _entropies_compiled(images, sides, bins, pad_value)
    found = _entropies(images, sides, bins)
    return {side: _round_up(bits, height, width, side, pad_value) for side, bits in zip(sides, found, strict=True)}


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
        grey = _grey(part[:, :, : rows * patch_size, : cols * patch_size])
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
            counts = _pooled_sum(counts)
        return bits

    return _in_parts(images, entropies_of)


def _fits_entropy_kernel(images: Tensor, coarsest: int, bins: int) -> bool:
    if not can_compile(images):
        return False
    from apt_code import kernels

    return bins <= kernels.MOST_BINS and coarsest**2 <= kernels.MOST_PIXELS


def _entropies_compiled(images: Tensor, sides: Sequence[int], bins: int, pad_value: float) -> dict[int, Tensor]:
    """The finished maps by the compiled kernel."""
    from apt_code import kernels

    pixels = images.expand(-1, 3, -1, -1).contiguous().numpy()  # one memory layout, so one compilation
    maps = {side: _empty_map(images, side, pad_value) for side in sides}
    constants = _entropy_constants(tuple(sides), bins)
    run_kernel(kernels.entropies, pixels, sides[0], bins, *constants, tuple(maps.values()))
    return {side: torch.from_numpy(found) for side, found in maps.items()}


@lru_cache(maxsize=8)
def _entropy_constants(sides: tuple[int, ...], bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey weights, `c log2 c` and bits per unit, as the kernel takes them."""
    table = _count_log_table(sides[-1] ** 2, torch.device("cpu")).numpy()
    return np.array(GREY_WEIGHTS) * bins, table, np.array([_bits_per_unit(side) for side in sides])


def _empty_map(images: Tensor, side: int, value: float) -> np.ndarray:
    """A map that is `value` everywhere, for a kernel to write the complete cells of."""
    return np.full((len(images), -(-images.shape[-2] // side), -(-images.shape[-1] // side)), value, np.float32)


def compute_patch_laplacian_batched(
    images: Tensor, patch_size: int = 16, num_scales: int = 3, pad_value: float = PAD_VALUE
) -> dict[int, Tensor]:
    """Mean absolute response of the 4-neighbour Laplacian of the grey level, in grey levels, in [0, 1020].

    The image's border is replicated. Arguments, shapes and errors as `compute_patch_entropy_batched`.
    """
    images, span = _checked(images, patch_size, num_scales)
    height, width = images.shape[-2:]
    if not images.is_floating_point():
        # 53 bits hold the sum over a cell of up to 29,717 px, each pixel at most four times the span
        highest = 4 * sum(GREY_WEIGHTS) * span
        sides = [patch_size * 2**scale for scale in range(num_scales)]
        _check_cells(images, sides, lambda side: highest * side * side < 2**53, "laplacian")
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
    if num_scales > MOST_SCALES_OF_ERROR:
        raise ValueError(f"num_scales={num_scales} with 'upsample_mse': expected at most {MOST_SCALES_OF_ERROR}")
    images, span = _checked(images, patch_size, num_scales)
    height, width = images.shape[-2:]
    channels = images.shape[1]
    nothing = images.new_zeros((len(images), height // patch_size, width // patch_size), dtype=torch.float64)
    maps = {patch_size: _round_up(nothing, height, width, patch_size, pad_value)}
    for size in (2**scale for scale in range(1, num_scales)):
        side = patch_size * size
        per_unit = _error_unit(size) / (channels * side**2)
        if _fits_error_kernel(images, side, size):
            with contextlib.suppress(KernelFailedError):
                maps[side] = _square_error_compiled(images, patch_size, size, per_unit, pad_value)
                continue
        mean = _square_error(images, patch_size, size, span) * per_unit
        maps[side] = _round_up(mean, height, width, side, pad_value)
    return maps


def _fits_error_kernel(images: Tensor, side: int, size: int) -> bool:
    if not can_compile(images):
        return False
    from apt_code import kernels

    return kernels.upsample_errors_fit(images.shape[1], side, size)


def _square_error_compiled(images: Tensor, patch_size: int, size: int, per_unit: float, pad_value: float) -> Tensor:
    """The finished map of one scale by the compiled kernel."""
    from apt_code import kernels

    errors = _empty_map(images, patch_size * size, pad_value)
    pixels = images.contiguous().numpy()  # one memory layout, so one compilation
    run_kernel(kernels.upsample_errors, pixels, patch_size, size, per_unit, errors)
    return torch.from_numpy(errors)


def _square_error(images: Tensor, patch_size: int, size: int, span: float) -> Tensor:
    """Squared error summed over each complete cell, in units of `_error_unit(size)`: `(b, c, H, W)` -> float64 cells.

    `span` is how far the pixels' extreme values can lie apart, and so how far a pixel from what it is restored as.
    """
    side = patch_size * size
    rows, cols = images.shape[-2] // side, images.shape[-1] // side
    if rows * cols == 0:
        return images.new_zeros((len(images), rows, cols), dtype=torch.float64)
    largest = span**2 / _error_unit(size)  # 2⁴⁴ of bytes at 8×, 2⁶² of pixels up to `LARGEST_PIXEL`

    def errors_of(part: Tensor) -> list[Tensor]:
        # every cell alone, so that the scaling up never looks at its neighbours
        whole = part[..., : rows * side, : cols * side].float()
        cells = rearrange(whole, "b c (h p) (w q) -> (b h w) c p q", p=side, q=side)
        restored = F.interpolate(F.avg_pool2d(cells, size), scale_factor=size, mode="bilinear", align_corners=False)
        square = (cells - restored).double().square() / _error_unit(size)
        return [exact_sum(square.round().long(), (1, 2, 3), largest).view(len(part), rows, cols)]

    return _in_parts(images, errors_of)[0]


def _error_unit(size: int) -> float:
    """The squared error of integer pixels is a multiple of this: an average over size², blended twice over 2 size.

    Counted in it, sums over a cell are integers, which have no rounding; noise at 8× would be too much for float64.
    """
    return 1.0 / (4 * size**4) ** 2


@dataclass(frozen=True)
class ImportanceMethod:
    """One row of the table of importance maps.

    Args:
        compute: `(images, patch_size, num_scales, pad_value=…)` -> maps, as the functions above.
        unit: what the map, and so a threshold on it, is measured in.
        highest: `(side, bins)` -> the largest importance that a complete cell of `side` px can have.
        default_thresholds: keep-whole thresholds for cells of 2, 4, … base patches; the last one serves all coarser.
        coarse_scores: whether `budget` scores a coarse cell by the map's own value there, rather than by the mean of
            its finest cells.
    """

    compute: Callable[..., dict[int, Tensor]]
    unit: str
    highest: Callable[[int, int], float]
    default_thresholds: tuple[float, ...]
    coarse_scores: bool

    def thresholds(self, num_scales: int) -> list[float]:
        """The default thresholds for `num_scales` scales, finest coarse scale first."""
        last = self.default_thresholds[-1]
        return [*self.default_thresholds, *[last] * num_scales][: num_scales - 1]


IMPORTANCE_METHODS: Mapping[str, ImportanceMethod] = {
    "entropy": ImportanceMethod(
        compute_patch_entropy_batched,
        "bits",
        lambda side, bins: math.log2(min(bins, side * side)),  # as many bins, each equally full
        (3.0, 2.0),
        coarse_scores=False,
    ),
    "laplacian": ImportanceMethod(
        compute_patch_laplacian_batched,
        "grey levels",
        lambda side, bins: 4 * 255.0,  # a chessboard of black and white pixels
        (4.0, 4.0),
        coarse_scores=False,
    ),
    "upsample_mse": ImportanceMethod(
        compute_patch_upsample_mse_batched,
        "grey levels²",
        lambda side, bins: 255.0**2,  # no pixel is restored as more than white or less than black
        (64.0, 64.0),
        coarse_scores=True,
    ),
}


def threshold_warning(
    thresholds: Sequence[float], importance_method: str, base_patch_size: int, bins: int = BINS
) -> str | None:
    """What to say of thresholds above all that their map can reach, which keep every cell whole; `None` for nothing.

    Args:
        thresholds: as `check_thresholds` returns them. Infinite ones say that every cell is to stay whole: no word.
        importance_method: a name in `IMPORTANCE_METHODS`.
        base_patch_size: side of the finest patch in pixels.
        bins: histogram bins of the entropy.
    """
    method = IMPORTANCE_METHODS[importance_method]
    sides = [base_patch_size * 2**scale for scale in range(1, len(thresholds) + 1)]
    highest = [method.highest(side, bins) for side in sides]
    beyond = [
        f"{value:g} at {side} px (highest importance there: {most:.4g})"
        for value, side, most in zip(thresholds, sides, highest, strict=True)
        if most < value < math.inf
    ]
    if not beyond:
        return None
    return (
        f"thresholds={list(thresholds)} with the importance map {importance_method!r}, in {method.unit}: "
        f"{' and '.join(beyond)} can never be reached, so every such cell stays whole. Lower the thresholds "
        f"(default {method.thresholds(len(thresholds) + 1)}), name the map that they are meant for with "
        "importance_method, or say float('inf') if every cell is to stay whole"
    )
