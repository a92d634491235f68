"""What the importance maps share: checks of images, grey levels, pooling, and grids that are rounded up.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `h w` cells of one scale, `p` side of a cell in px.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAD_VALUE = 1e6
"""Importance of a cell that is not wholly inside the image."""
CHANNELS = (1, 3)
"""How many an image may have."""
GREY_WEIGHTS = (2989, 5870, 1140)
"""ITU-R BT.601 luma, in ten-thousandths: 0.2989 R + 0.5870 G + 0.1140 B."""
GREY_SCALE = 10_000
LARGEST_PIXEL = 2.0**16
"""Pixels further from 0 than this, which are no grey levels in any unit, count as this, so that no sum overflows."""
PIXELS_AT_ONCE = 2**24
"""How many pixels the plain code, which holds several numbers per pixel, works on at a time."""


_in_range: ContextVar[bool] = ContextVar("_in_range", default=False)


@contextlib.contextmanager
def known_grey_levels() -> Iterator[None]:
    """Within it floating-point pixels are in [0, 255], as whoever enters it has seen to: nobody looks, and waits."""
    before = _in_range.set(True)
    try:
        yield
    finally:
        _in_range.reset(before)


def checked(images: Tensor, patch_size: int, num_scales: int) -> tuple[Tensor, float]:
    """The images without their gradient, and how far their extreme values can lie apart, after checking them."""
    if images.ndim != 4 or images.shape[1] not in CHANNELS:
        raise ValueError(
            f"images have shape (batch, channels, height, width) with 1 or 3 channels, got {tuple(images.shape)}; "
            "convert to RGB, channels first"
        )
    if len(images) == 0:
        raise ValueError(f"images is an empty batch, expected at least one image, got {tuple(images.shape)}")
    if patch_size < 1 or num_scales < 1:
        raise ValueError(f"patch_size and num_scales are at least 1, got {patch_size} and {num_scales}")
    images = images.detach()
    if images.dtype == torch.uint8 or images.numel() == 0 or (_in_range.get() and images.is_floating_point()):
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


def check_cells(images: Tensor, sides: Sequence[int], fits: Callable[[int], bool], name: str) -> None:
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


def grey_of(images: Tensor) -> Tensor:
    """`(b, c, H, W)` -> `(b, H, W)` grey level in ten-thousandths: int64 for integer pixels, else float64."""
    exact = images.to(torch.float64 if images.is_floating_point() else torch.int64)
    red, green, blue = exact.expand(-1, 3, -1, -1).unbind(1)
    return GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue


def pooled_sum(values: Tensor) -> Tensor:
    """Sum over 2×2 cells, dropping a last odd row or column: `(b, h, w, ...)` -> `(b, h//2, w//2, ...)`."""
    h, w = values.shape[1] // 2 * 2, values.shape[2] // 2 * 2
    cells = values[:, :h, :w]
    return cells[:, ::2, ::2] + cells[:, ::2, 1::2] + cells[:, 1::2, ::2] + cells[:, 1::2, 1::2]


def round_up(complete: Tensor, height: int, width: int, side: int, pad_value: float) -> Tensor:
    """Complete cells `(b, H//p, W//p)` -> float32 map of all cells, `(b, ceil(H/p), ceil(W/p))`."""
    rows, cols = -(-height // side), -(-width // side)
    padding = (0, cols - complete.shape[2], 0, rows - complete.shape[1])
    return F.pad(complete.float(), padding, value=pad_value) if any(padding) else complete.float()


def in_parts(images: Tensor, work: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
    """`work` on a few images of the batch at a time, so that what it needs on the way stays bounded."""
    at_once = max(1, PIXELS_AT_ONCE // max(1, images.shape[-2] * images.shape[-1]))
    return [torch.cat(found) for found in zip(*map(work, images.split(at_once)), strict=True)]


def empty_map(images: Tensor | np.ndarray, side: int, value: float) -> np.ndarray:
    """A map that is `value` everywhere, for a kernel to write the complete cells of."""
    return np.full((len(images), -(-images.shape[-2] // side), -(-images.shape[-1] // side)), value, np.float32)
