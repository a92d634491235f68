"""The compiled form of `patch_packing`, over uint8 images on the CPU: one call per batch, one pass over what is kept.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `n` patches. Every sum is exact, so the results are
those of the plain code to the bit; tests hold the two equal.

Widths are constants of the kernel, for the compiler to unroll; places in arrays are unsigned, so that it need not ask
whether they count from the end. A patch is brought together first and finished in one loop: over short lines, the
questions whether arrays overlap would take longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from apt_code.compilation import compiled

KNOWN_PATCH_SIZES = (14, 16)
"""Those of the families, in pixels: they get a kernel of their own, all others share one."""

SIZES = (1, 2, 4, 8, 16)
"""Packing adds up to 16 × 16 bytes in 16 bits."""

U = np.uintp


def gather_rows(
    images: np.ndarray,
    patches: np.ndarray,
    ends: np.ndarray,
    places: np.ndarray,
    tables: np.ndarray,
    starts: np.ndarray,
    means: np.ndarray,
    stds: np.ndarray,
    patch_size: int,
    frames: int,
    sizes: int,
    rows: np.ndarray,
) -> bool:
    """Finish every pixel of the kept patches: as `(pixel − mean) / std`, or by looking it up.

    Args:
        images: `(b, c, H, W)` uint8, contiguous.
        patches: `(n, 3)` int64 `(row, col, size)`, of all images one after the other.
        ends: `(b,)` int64, where each image's patches end.
        places: `(b,)` int64, where each image's rows begin.
        tables: `(c, entries)` float32: for each size, the value of a sum of `size²` pixels. Not used with means.
        starts: `(largest size + 1,)` int64: where a size's values start in the tables, −1 for what is no size.
        means, stds: `(c,)` float32, or both empty to look up instead.
        patch_size, frames: side of the raster, and how often each is repeated.
        sizes: of the patches, each a bit.
        rows: `(at least n, c·frames·patch_size²)` float32, written.

    Returns:
        Whether every patch is of one of `SIZES` and lies wholly inside its image; if not, what was written is of no
        use.
    """
    known = patch_size if patch_size in KNOWN_PATCH_SIZES else 0
    sums, line = np.empty(patch_size**2, np.uint16), np.empty(patch_size * SIZES[-1], np.uint16)
    done = 0
    for size in (size for size in SIZES if sizes & size):
        table, kernel = tables[:, starts[size] :], _kernel(known, size, len(means) > 0)
        done += kernel(images, patches, ends, places, table, means, stds, patch_size, frames, sums, line, rows)
    return done == len(patches)


@lru_cache(maxsize=32)
def _kernel(known_patch_size: int, size: int, affine: bool) -> Callable[..., Any]:
    """The kernel for patches of one size, with two arrays to work in; for a patch size, or with 0 for any.

    It returns how many it found, up to one that does not lie inside its image.
    """

    @compiled
    def gather(images, patches, ends, places, table, means, stds, patch_size, frames, sums, line, rows):  # type: ignore[no-untyped-def]
        p = known_patch_size if known_patch_size else patch_size
        height, width = images.shape[2] // p, images.shape[3] // p
        per_pixel = np.float32(1.0 / (size * size))
        image, place, done = 0, places[0], 0
        for i in range(patches.shape[0]):
            while i >= ends[image]:
                image += 1
                place = places[image]
            if patches[i, 2] == size:
                row, col = patches[i, 0], patches[i, 1]
                if row < 0 or row > height - size or col < 0 or col > width - size:
                    break
                top, left, values = U(row * p), U(col * p), rows[place]
                for channel in range(images.shape[1]):
                    plane = images[image, channel]
                    if size <= 2:
                        for y in range(U(p)):
                            for x in range(U(p)):
                                total = np.uint16(0)
                                for j in range(U(size)):
                                    for k in range(U(size)):
                                        total = np.uint16(total + plane[top + y * U(size) + j, left + x * U(size) + k])
                                sums[y * U(p) + x] = total
                    else:
                        for y in range(U(p)):
                            for x in range(U(p * size)):
                                total = np.uint16(0)
                                for j in range(U(size)):
                                    total = np.uint16(total + plane[top + y * U(size) + j, left + x])
                                line[x] = total
                            for x in range(U(p)):
                                total = np.uint16(0)
                                for k in range(U(size)):
                                    total = np.uint16(total + line[x * U(size) + k])
                                sums[y * U(p) + x] = total
                    begin = U(channel * frames * p * p)
                    if affine:
                        mean, std = means[channel], stds[channel]
                        for x in range(U(p * p)):
                            values[begin + x] = (np.float32(sums[x]) * per_pixel - mean) / std
                    else:
                        for x in range(U(p * p)):
                            values[begin + x] = table[channel, sums[x]]
                    for frame in range(U(1), U(frames)):
                        for x in range(U(p * p)):
                            values[begin + frame * U(p * p) + x] = values[begin + x]
                done += 1
            place += 1
        return done

    return gather
