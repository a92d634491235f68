"""`upsample_l4`: what is lost of a cell that is kept whole, with the worst of it weighing most.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `h w` cells of one scale, `p` side of a cell in px.

A thin stroke that disappears is far off in few pixels; noise, grass and gravel are a little off in all. The mean of
the squares cannot tell them apart, the mean of the fourth powers can.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apt_code.exact_sum import exact_sum
from apt_code.importance.common import PAD_VALUE, checked, in_parts
from apt_code.importance.losses import Loss, check_scales, maps_of_loss, restoration_errors

PARTS = 16
"""Errors are counted in this many parts of a grey level: a half of one is far below any threshold that is of use."""
LARGEST_ERROR = 255 * PARTS
"""No grey level is restored further off than this; pixels of another range, which may be, count as this far off."""


def compute_patch_upsample_l4_batched(
    images: Tensor,
    patch_size: int = 16,
    num_scales: int = 3,
    pad_value: float = PAD_VALUE,
) -> dict[int, Tensor]:
    """What keeping a cell whole loses, as `upsample_mse`, with few large errors weighing more than many small ones.

    With `e` the pixels less what they are restored as (area average down to `patch_size`, bilinear up):
    `sqrt(mean(e⁴))` over pixels and channels, in grey levels², in [0, 255²]. It is the mean squared error where all
    pixels are equally far off, and more than that where few are. The finest scale loses nothing: its map is 0.
    Arguments, shapes and errors as `compute_patch_upsample_mse_batched`.

    Exact for integer pixels, so that devices, backends and batches agree: their `e` is exact in float32, it is rounded
    to sixteenths of a grey level, halves away from 0, and the fourth powers of those are integers. Their sum is
    rounded once, and the root of an IEEE double is the same everywhere.
    """
    check_scales(num_scales, FOURTH_POWERS.name)
    images, _ = checked(images, patch_size, num_scales)

    def plain(size: int) -> Tensor:
        worth = FOURTH_POWERS.worth(images.shape[1], patch_size, size)
        return (_fourth_powers(images, patch_size * size, size) * worth).sqrt()

    return maps_of_loss(images, patch_size, num_scales, pad_value, FOURTH_POWERS, plain)


def _fourth_powers(images: Tensor, side: int, size: int) -> Tensor:
    """Fourth powers of the errors in `PARTS`, summed over each complete cell: `(b, c, H, W)` -> float64 cells."""
    rows, cols = images.shape[-2] // side, images.shape[-1] // side
    if rows * cols == 0:
        return images.new_zeros((len(images), rows, cols), dtype=torch.float64)

    def powers_of(part: Tensor) -> list[Tensor]:
        error = (restoration_errors(part, side, size).abs() * PARTS + 0.5).floor().clamp(max=LARGEST_ERROR).long()
        return [exact_sum(error**4, (1, 2, 3), float(LARGEST_ERROR) ** 4).view(len(part), rows, cols)]

    return in_parts(images, powers_of)[0]


def _worth(channels: int, patch_size: int, size: int) -> float:
    return 1.0 / (PARTS**4 * channels * (patch_size * size) ** 2)


FOURTH_POWERS = Loss("upsample_l4", True, _worth)
