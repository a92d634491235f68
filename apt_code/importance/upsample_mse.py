"""`upsample_mse`: what is lost of a cell that is kept whole.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `h w` cells of one scale, `p` side of a cell in px.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apt_code.exact_sum import exact_sum
from apt_code.importance.common import PAD_VALUE, checked, in_parts
from apt_code.importance.losses import Loss, check_scales, maps_of_loss, restoration_errors


def compute_patch_upsample_mse_batched(
    images: Tensor,
    patch_size: int = 16,
    num_scales: int = 3,
    pad_value: float = PAD_VALUE,
) -> dict[int, Tensor]:
    """What keeping a cell whole loses: mean squared error between it and its own coarse patch scaled back up.

    Area average down to `patch_size`, bilinear up, mean over pixels and channels, in grey levels², in [0, 255²]. The
    finest scale loses nothing: its map is 0. Arguments, shapes and errors as `compute_patch_entropy_batched`.
    """
    check_scales(num_scales, SQUARES.name)
    images, span = checked(images, patch_size, num_scales)

    def plain(size: int) -> Tensor:
        return _square_error(images, patch_size, size, span) * SQUARES.worth(images.shape[1], patch_size, size)

    return maps_of_loss(images, patch_size, num_scales, pad_value, SQUARES, plain)


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
        square = restoration_errors(part, side, size).double().square() / _error_unit(size)
        return [exact_sum(square.round().long(), (1, 2, 3), largest).view(len(part), rows, cols)]

    return in_parts(images, errors_of)[0]


def _error_unit(size: int) -> float:
    """The squared error of integer pixels is a multiple of this: an average over size², blended twice over 2 size.

    Counted in it, sums over a cell are integers, which have no rounding; noise at 8× would be too much for float64.
    """
    return 1.0 / (4 * size**4) ** 2


def _worth(channels: int, patch_size: int, size: int) -> float:
    return _error_unit(size) / (channels * (patch_size * size) ** 2)


SQUARES = Loss("upsample_mse", False, _worth)
