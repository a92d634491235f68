"""The compiled form of `upsample_mse` and `upsample_l4`, over uint8 images on the CPU: one call per batch and scale.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `rows cols` complete cells of one scale. Every sum is
exact, so the results are those of the plain code to the bit; tests hold the two equal.

Losses only grow while a cell is read, so its reading can end where they are enough: of most textured cells after a few
lines of the first channel.

Widths are constants of the kernel, for the compiler to unroll; places in arrays are unsigned, so that it need not ask
whether they count from the end. Pixels count in units of `1 / (4 size⁴)` grey levels, which makes every error an
integer: an average over size², blended twice in (2 size)ths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from apt_code.compilation import compiled, inlined

KNOWN_PATCH_SIZES = (14, 16)
"""Those of the families, in pixels: they get a kernel of their own, all others share one."""

U = np.uintp


def fits(channels: int, side: int, size: int, fourth: bool) -> bool:
    """Whether no number of the kernel overflows: the sum over a cell of `side` px in int64, the rest in int32.

    The largest of the rest is a white pixel in units of `1 / (4 size⁴)`, 2²² at 8×.
    """
    white = (255 * 16) ** 4 if fourth else (255 * 4 * size**4) ** 2
    return size <= 8 and channels * side**2 * white < 2**63


def upsampling_losses(
    images: np.ndarray,
    patch_size: int,
    size: int,
    fourth: bool,
    per_unit: float,
    enough: float,
    coarser: np.ndarray,
    whole_below: float,
    losses: np.ndarray,
) -> None:
    """What every complete cell loses to its own coarse patch scaled back up.

    Args:
        images: `(b, c, H, W)` uint8, contiguous.
        patch_size: side of the coarse raster.
        size: 2, 4 or 8; the cell is `patch_size · size` pixels wide.
        fourth: whether to take the root of the mean fourth power, rather than the mean square.
        per_unit: what a square in those units, or a fourth power in sixteenths of a grey level, summed over a cell,
            is worth in the mean.
        enough: a loss that is no smaller need not be known: it comes out between this and what it is.
        coarser: `(b, at least rows / 2, at least cols / 2)` float32, the losses of cells twice as wide.
        whole_below: where those are smaller, nobody asks for the loss here: it comes out as −inf.
        losses: `(b, at least rows, at least cols)` float32, written, but for cells that stick out.
    """
    kernel = _kernel(patch_size if patch_size in KNOWN_PATCH_SIZES else 0, size, fourth)
    side = patch_size * size
    wide = np.empty((patch_size, side), np.int32)
    sums, area = np.empty(side, np.uint16), np.empty(patch_size, np.int32)
    kernel(images, patch_size, per_unit, enough, coarser, whole_below, sums, area, wide, losses)


@inlined
def _stretch_row(plane, top, left, patch_size, size, sums, area, wide):  # type: ignore[no-untyped-def]
    """A coarse row from its pixels, as wide as they are: each from its own coarse pixel and the next one."""
    for x in range(U(patch_size * size)):
        total = np.uint16(0)
        for i in range(U(size)):
            total = np.uint16(total + plane[top + i, left + x])
        sums[x] = total
    for c in range(U(patch_size)):
        block = np.int32(0)
        for j in range(U(size)):
            block += sums[c * U(size) + j]
        area[c] = block
    for c in range(U(patch_size)):
        # beyond the edge of a cell its outermost column stands in
        west, east = area[c - U(c > U(0))], area[c + U(c < U(patch_size - 1))]
        for j in range(size):
            # the centre of fine column j lies (2 j + 1 − size) / (2 size) coarse columns from the centre of its own
            shift = 2 * j + 1 - size
            far = np.int32(abs(shift))
            wide[c * U(size) + U(j)] = (np.int32(2 * size) - far) * area[c] + far * (east if shift > 0 else west)


@inlined
def _squares(plane, y, left, side, wide, own, beside, near, far, unit):  # type: ignore[no-untyped-def]
    """The squared errors of one line, added up."""
    total = np.int64(0)
    for x in range(U(side)):
        error = np.int32(plane[y, left + x]) * unit - near * wide[own, x] - far * wide[beside, x]
        total += np.int64(error) * np.int64(error)
    return total


@inlined
def _fourth_powers(plane, y, left, side, wide, own, beside, near, far, unit):  # type: ignore[no-untyped-def]
    """Fourth powers of the errors in sixteenths of a grey level, halves away from 0; in float32, which is exact."""
    scale = np.float32(16.0) / np.float32(unit)
    total = np.int64(0)
    for x in range(U(side)):
        error = np.int32(plane[y, left + x]) * unit - near * wide[own, x] - far * wide[beside, x]
        sixteenths = np.int32(np.float32(abs(error)) * scale + np.float32(0.5))
        square = np.int64(sixteenths) * np.int64(sixteenths)
        total += square * square
    return total


@lru_cache(maxsize=32)
def _kernel(known_patch_size: int, size: int, fourth: bool) -> Callable[..., Any]:
    """The kernel for patches of this size, 0 for any, with three arrays to work in."""
    unit = np.int32(4 * size**4)

    @compiled
    def losses_of(images, patch_size, per_unit, enough, coarser, whole_below, sums, area, wide, losses):  # type: ignore[no-untyped-def]
        p = known_patch_size if known_patch_size else patch_size
        side = p * size
        for image in range(U(images.shape[0])):
            for row in range(U(images.shape[2]) // U(side)):
                for col in range(U(images.shape[3]) // U(side)):
                    if coarser[image, row >> U(1), col >> U(1)] < whole_below:
                        losses[image, row, col] = -np.inf
                        continue
                    total, loss = np.int64(0), np.float32(0)
                    for i in range(images.shape[1]):
                        plane = images[image, (i + 1) % images.shape[1]]  # green first, which has most of the detail
                        top, left = row * U(side), col * U(side)
                        _stretch_row(plane, top, left, p, size, sums, area, wide[0])
                        for r in range(U(p)):
                            above, below = r - U(r > U(0)), r + U(r < U(p - 1))
                            if below > r:
                                _stretch_row(plane, top + below * U(size), left, p, size, sums, area, wide[below])
                            for j in range(size):
                                shift = 2 * j + 1 - size
                                far = np.int32(abs(shift))
                                near, beside = np.int32(2 * size) - far, below if shift > 0 else above
                                y = top + r * U(size) + U(j)
                                if fourth:
                                    total += _fourth_powers(plane, y, left, side, wide, r, beside, near, far, unit)
                                else:
                                    total += _squares(plane, y, left, side, wide, r, beside, near, far, unit)
                            mean = np.float64(total) * per_unit
                            loss = np.float32(np.sqrt(mean) if fourth else mean)
                            if loss >= enough:
                                break
                        if loss >= enough:
                            break
                    losses[image, row, col] = loss

    return losses_of
