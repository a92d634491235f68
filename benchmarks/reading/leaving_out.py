"""What is left out of a tiling, and what stands in its place: the rules on trial, read out loud rather than fast.

Axis legend: `c` channels, `H W` pixels.

`leave_out` is the package's `drop_flat` with the pixels that a model could at best think of in place of what is gone,
and with the extension *predictable* that the package does not have. `prune_pixels` is PixelPrune's rule after its
paper (arXiv 2604.00886), written anew: no tiling, every 28-px cell is kept in full or left out.
"""

from __future__ import annotations

import numpy as np
import torch

from apt_code.patch_layout import MERGE_SIZE, PatchLayout

Place = tuple[slice, slice, slice]


def leave_out(
    image: np.ndarray,
    seen: np.ndarray,
    layout: PatchLayout,
    tolerance: float,
    patch_size: int,
    predictable: float | None,
) -> tuple[PatchLayout, np.ndarray]:
    """Drop units that repeat a neighbour.

    Args:
        image: `(c, H, W)` uint8.
        seen: `(c, H, W)` uint8, what the tiling leaves of it.
        layout: the tiling.
        tolerance: in grey levels, for flat units.
        patch_size: side of a base patch in pixels.
        predictable: grey levels by which a unit may differ from the neighbour that predicts it; `None` drops flat
            units only.

    Returns:
        The layout of what stays, and the pixels with what each dropped unit inherits.
    """
    cell = patch_size * MERGE_SIZE
    seen = seen.copy()
    roots: dict[tuple[int, int], np.ndarray] = {}  # merge cell -> exact mean of its root, where it is flat
    stays = np.ones(len(layout), bool)
    coarsest = max(1, max(layout.patches_by_size) // MERGE_SIZE)
    units = [
        (i, row // MERGE_SIZE, col // MERGE_SIZE, size)
        for i, (row, col, size) in enumerate(layout.patches.tolist())
        if row % MERGE_SIZE == 0 and col % MERGE_SIZE == 0
    ]
    units.sort(key=lambda unit: (unit[1] // coarsest, unit[2] // coarsest, unit[1] % coarsest, unit[2] % coarsest))
    for first, row, col, size in units:
        side = max(1, size // MERGE_SIZE)  # in merge cells
        place = _place(row, col, side, cell)
        root, dropped = _mean_where_flat(image[place], size, tolerance), False
        if root is not None:
            left = [(row + i, col - 1) for i in range(side)] if col else []
            above = [(row - 1, col + i) for i in range(side)] if row else []
            for beside in (left, above):
                if beside and all(spot in roots and (abs(roots[spot] - root) <= tolerance).all() for spot in beside):
                    root, dropped = roots[beside[0]], True
                    seen[place] = np.rint(root)[:, None, None]
                    break
        if not dropped and predictable is not None:
            likely = _predicted(seen, row, col, side, cell, predictable)
            if likely is not None and _apart(seen[place], likely) <= predictable:
                seen[place], root, dropped = likely.copy(), None, True
        if root is not None:
            roots.update({(row + i, col + j): root for i in range(side) for j in range(side)})
        if dropped:
            stays[first : first + (MERGE_SIZE**2 if size == 1 else 1)] = False
    return PatchLayout(layout.grid, layout.patches[torch.from_numpy(stays)]), seen


def prune_pixels(image: np.ndarray, tau: float, patch_size: int) -> tuple[int, np.ndarray]:
    """PixelPrune's rule: how many cells of `MERGE_SIZE` patches stay, and the pixels with what stands for the others.

    A cell is compared with what is left of its neighbours, so that nothing drifts further than `tau`.
    """
    cell = patch_size * MERGE_SIZE
    seen, kept = image.copy(), 0
    for row, col in np.ndindex(image.shape[1] // cell, image.shape[2] // cell):
        place = _place(row, col, 1, cell)
        likely = _predicted(seen, row, col, 1, cell, tau)
        if likely is not None and _apart(seen[place], likely) <= tau:
            seen[place] = likely.copy()
        else:
            kept += 1
    return kept, seen


def _predicted(seen: np.ndarray, row: int, col: int, side: int, cell: int, tolerance: float) -> np.ndarray | None:
    """The neighbour that a unit is likely to repeat: LOCO-I's test, on whole cells.

    The upper one, where the upper left is like the left and not like the upper: then nothing changes downwards there,
    and something does to the right. Else the left one, or the only one there is.
    """
    left = seen[_place(row, col - side, side, cell)] if col >= side else None
    above = seen[_place(row - side, col, side, cell)] if row >= side else None
    if left is None or above is None:
        return above if left is None else left
    corner = seen[_place(row - side, col - side, side, cell)]
    return above if _apart(corner, left) <= tolerance < _apart(corner, above) else left


def _place(row: int, col: int, side: int, cell: int) -> Place:
    return slice(None), slice(row * cell, (row + side) * cell), slice(col * cell, (col + side) * cell)


def _apart(a: np.ndarray, b: np.ndarray) -> int:
    """How far the two are apart where they are furthest apart, in grey levels."""
    return int(abs(a.astype(np.int16) - b).max())


def _mean_where_flat(pixels: np.ndarray, size: int, tolerance: float) -> np.ndarray | None:
    """The mean per channel, if what is read of these pixels deviates from it by at most `tolerance` on average."""
    channels, side, _ = pixels.shape
    # (c, H, W) -> (c, values), each the sum of size × size pixels
    blocks = pixels.astype(np.int64).reshape(channels, side // size, size, side // size, size).sum((2, 4))
    values = blocks.reshape(channels, -1)
    count, area = values.shape[1], size * size
    spread = count * (values**2).sum(1) - values.sum(1) ** 2
    return None if (spread > (tolerance * area * count) ** 2).any() else values.sum(1) / (count * area)
