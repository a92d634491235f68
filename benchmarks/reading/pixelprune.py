"""PixelPrune's rule after its paper (arXiv 2604.00886), written anew: no tiling, every 28-px cell is kept in full or
left out.

Axis legend: `c` channels, `H W` pixels.
"""

from __future__ import annotations

import numpy as np

from apt_code.patch_layout import MERGE_SIZE


def prune_pixels(image: np.ndarray, tau: float, patch_size: int) -> tuple[int, np.ndarray]:
    """How many cells of `MERGE_SIZE` patches stay, and the pixels with what stands for the others.

    A cell is compared with what is left of its neighbours, so that nothing drifts further than `tau`.

    Args:
        image: `(c, H, W)` uint8.
        tau: grey levels that a pixel may differ by.
        patch_size: side of a base patch in pixels.
    """
    cell = patch_size * MERGE_SIZE
    seen, kept = image.copy(), 0
    for row, col in np.ndindex(image.shape[1] // cell, image.shape[2] // cell):
        here = _cell(seen, row, col, cell)
        likely = _predicted(seen, row, col, cell, tau)
        if likely is not None and _apart(here, likely) <= tau:
            here[:] = likely.copy()
        else:
            kept += 1
    return kept, seen


def _predicted(seen: np.ndarray, row: int, col: int, cell: int, tau: float) -> np.ndarray | None:
    """The neighbour that a cell is likely to repeat: LOCO-I's test, on whole cells.

    The upper one, where the upper left is like the left and not like the upper: then nothing changes downwards there,
    and something does to the right. Else the left one, or the only one there is.
    """
    left = _cell(seen, row, col - 1, cell) if col else None
    above = _cell(seen, row - 1, col, cell) if row else None
    if left is None or above is None:
        return above if left is None else left
    corner = _cell(seen, row - 1, col - 1, cell)
    return above if _apart(corner, left) <= tau < _apart(corner, above) else left


def _cell(seen: np.ndarray, row: int, col: int, cell: int) -> np.ndarray:
    return seen[:, row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]


def _apart(a: np.ndarray, b: np.ndarray) -> int:
    """How far the two are apart where they are furthest apart, in grey levels."""
    return int(abs(a.astype(np.int16) - b).max())
