"""What `upsample_mse` and `upsample_l4` share: how far a cell is from its own coarse patch scaled back up.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `rows cols` cells of one scale, `p` side of a cell in
px.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from apt_code.compilation import KernelFailedError, can_compile, run_kernel
from apt_code.device import on_device
from apt_code.device.upsampling import scale_up
from apt_code.importance.common import PAD_VALUE, empty_map, round_up

MOST_SCALES = 4
"""Up to 8× cells, what integer pixels lose is exact: its numbers fit float32, and their squares float64."""


@dataclass(frozen=True)
class Loss:
    """A way to add errors up.

    Attributes:
        name: the importance map's.
        fourth: whether fourth powers are added up and the root is taken, rather than squares.
        worth: `(channels, patch_size, size)` -> what the kernel's sum over a cell of `size` patches a side is
            multiplied by.
    """

    name: str
    fourth: bool
    worth: Callable[[int, int, int], float]


def check_scales(num_scales: int, name: str) -> None:
    """Refuse scales so coarse that `restoration_errors` would not be exact."""
    if num_scales > MOST_SCALES:
        raise ValueError(f"num_scales={num_scales} with {name!r}: expected at most {MOST_SCALES}")


def maps_of_loss(
    images: Tensor, patch_size: int, num_scales: int, pad_value: float, loss: Loss, plain: Callable[[int], Tensor]
) -> dict[int, Tensor]:
    """A map for each scale of what averaging loses; the finest scale loses nothing, and its map is 0.

    Args:
        images, patch_size, num_scales, pad_value: as `checked` takes and returns them.
        loss: for the kernel.
        plain: by how many patches a side has, the values of the complete cells, `(b, rows, cols)` float64.
    """
    height, width = images.shape[-2:]
    rows, cols = height // patch_size, width // patch_size
    maps = {patch_size: round_up(images.new_zeros((len(images), rows, cols)), height, width, patch_size, pad_value)}
    pixels = images.contiguous().numpy() if can_compile(images) else None  # one memory layout, so one compilation
    for size in (2**scale for scale in range(1, num_scales)):
        found = None
        if pixels is not None and can_compile(images):
            with contextlib.suppress(KernelFailedError):
                found = compiled_losses(pixels, patch_size, size, loss, pad_value)
        side = patch_size * size
        maps[side] = (
            round_up(plain(size), height, width, side, pad_value) if found is None else torch.from_numpy(found)
        )
    return maps


def compiled_losses(
    pixels: np.ndarray,
    patch_size: int,
    size: int,
    loss: Loss,
    pad_value: float = PAD_VALUE,
    enough: float = math.inf,
    coarser: np.ndarray | None = None,
    whole_below: float = -math.inf,
) -> np.ndarray | None:
    """A map by the kernel, with its arguments; `None` where it would not be exact.

    Raises:
        KernelFailedError: it cannot be compiled.
    """
    from apt_code.importance import upsampling_kernel

    worth = _worth(loss, pixels.shape[1], patch_size, size)
    if worth is None:
        return None
    losses = empty_map(pixels, patch_size * size, pad_value)
    above = losses if coarser is None else coarser  # none of which is below −inf
    run_kernel(
        upsampling_kernel.upsampling_losses,
        pixels, patch_size, size, loss.fourth, worth, enough, above, whole_below, losses,
    )  # fmt: skip
    return losses


@lru_cache(maxsize=64)
def _worth(loss: Loss, channels: int, patch_size: int, size: int) -> float | None:
    """`loss.worth`; `None` where the kernel's sums would not be exact."""
    from apt_code.importance import upsampling_kernel

    exact = upsampling_kernel.fits(channels, patch_size * size, size, loss.fourth)
    return loss.worth(channels, patch_size, size) if exact else None


def kept_whole(
    pixels: np.ndarray, patch_size: int, thresholds: Sequence[float], loss: Loss
) -> list[np.ndarray] | None:
    """Which cells lose less than their threshold, without working out what the others lose.

    Args:
        pixels: `(b, c, H, W)` uint8, contiguous.
        patch_size: side of the finest patch in pixels.
        thresholds: as `v1` takes them.
        loss: what is compared with them.

    Returns:
        `(b, rows, cols)` bool for each coarse scale, finest first. Within a larger cell that stays whole they say
        nothing. `None` where the kernel would not be exact.

    Raises:
        KernelFailedError: it cannot be compiled.
    """
    found: list[np.ndarray] = []
    coarser, below = None, -math.inf
    for size, enough in _compared(tuple(thresholds)):
        losses = compiled_losses(pixels, patch_size, size, loss, PAD_VALUE, enough, coarser, below)
        if losses is None:
            return None
        found.insert(0, losses < enough)
        coarser, below = losses, enough
    return found


@lru_cache(maxsize=64)
def _compared(thresholds: tuple[float, ...]) -> tuple[tuple[int, float], ...]:
    """By size of a cell, coarsest first, its threshold as `v1` compares it: in float32.

    Below every loss, or above, one is like another.
    """
    sizes = [2**scale for scale in range(1, len(thresholds) + 1)]
    values = [float(np.float32(min(max(threshold, -1.0), PAD_VALUE))) for threshold in thresholds]
    return tuple(zip(sizes, values, strict=True))[::-1]


def restoration_errors(images: Tensor, side: int, size: int) -> Tensor:
    """Each pixel less what it is restored as from its cell's own coarse patch: area average, then bilinear.

    Args:
        images: `(b, c, H, W)`.
        side: of a cell in pixels; cells that stick out are left out.
        size: how many pixels of a side are averaged.

    Returns:
        `(b·rows·cols, c, side, side)` float32, exact for integer pixels: multiples of `1 / (4 size⁴)`.
    """
    rows, cols = images.shape[-2] // side, images.shape[-1] // side
    # every cell alone, so that the scaling up never looks at its neighbours
    whole = images[..., : rows * side, : cols * side].float()
    cells = rearrange(whole, "b c (h p) (w q) -> (b h w) c p q", p=side, q=side)
    averages = F.avg_pool2d(cells, size)
    if on_device(averages):
        return cells - scale_up(averages, size)
    return cells - F.interpolate(averages, scale_factor=size, mode="bilinear", align_corners=False)
