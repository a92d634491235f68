"""What the rules share: checks of maps, parents and children, and the form in which kernels take maps.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from apt_code.compilation import can_compile


def check_maps(maps: Mapping[int, Tensor]) -> list[int]:
    """The sides of the maps, ascending, after checking that they form one pyramid."""
    sides = sorted(maps)
    if not sides:
        raise ValueError("importance_maps is empty; expected {cell side in px: (batch, rows, cols)}")
    base = maps[sides[0]]
    for scale, side in enumerate(sides):
        size = 2**scale
        expected = (base.shape[0], -(-base.shape[-2] // size), -(-base.shape[-1] // size)) if base.ndim == 3 else None
        if side != sides[0] * size or tuple(maps[side].shape) != expected:
            raise ValueError(
                f"importance_maps[{side}] has shape {tuple(maps[side].shape)}; expected sides that double from "
                f"{sides[0]} px and (batch, rows, cols) grids that halve, rounded up, from {tuple(base.shape)}"
            )
    return sides


def four_children(values: Tensor, shape: torch.Size) -> Tensor:
    """The 2×2 children of every cell: `(b, rows, cols)` -> `(4, b, *shape[1:])`; cells beyond the edge count as 0."""
    padding = (0, 2 * shape[2] - values.shape[2], 0, 2 * shape[1] - values.shape[1])
    padded = torch.nn.functional.pad(values, padding)
    return torch.stack([padded[:, row::2, col::2] for row in (0, 1) for col in (0, 1)])


def can_select_compiled(maps: Mapping[int, Tensor]) -> bool:
    return len(maps) > 1 and can_compile(maps[min(maps)], torch.float32)


def as_arrays(maps: Mapping[int, Tensor]) -> tuple[np.ndarray, ...]:
    """Finest first. Which cells are split has no gradient, so maps that have one, a caller's own, leave it behind."""
    return tuple(maps[side].detach().contiguous().numpy() for side in sorted(maps))


def per_coarse_cell(maps: Mapping[int, Tensor], dtype: type) -> tuple[np.ndarray, ...]:
    """An array like each coarse map, for a kernel to write."""
    return tuple(np.empty(maps[side].shape, dtype) for side in sorted(maps)[1:])
