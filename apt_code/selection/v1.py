"""Rule `v1`: a fixed threshold for each scale.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from apt_code.selection.common import check_maps
from apt_code.selection.settings import check_thresholds
from apt_code.selection.tiling import tile


def select_patches_by_threshold(entropy_maps: Mapping[int, Tensor], thresholds: Sequence[float]) -> dict[int, Tensor]:
    """Rule `v1`: a cell is kept whole where its importance is below its scale's threshold, largest cells first.

    Args:
        entropy_maps: `{side: (b, rows, cols)}`, of any importance method (the name is the founding documents').
        thresholds: one per coarse scale, finest first; in the unit of the map. Higher keeps more cells whole.

    Returns:
        `{side: (b, rows, cols)}` float 0/1 masks of one tiling per image.
    """
    return tile(entropy_maps, rule_v1(entropy_maps, thresholds))


def rule_v1(maps: Mapping[int, Tensor], thresholds: Sequence[float]) -> dict[int, Tensor]:
    """Where `v1` would keep a cell whole, at each coarse side; what `tile` makes of it is the tiling."""
    sides = check_maps(maps)
    values = check_thresholds(thresholds, len(sides))
    return {side: maps[side] < value for side, value in zip(sides[1:], values, strict=True)}
