"""Rule `v2`: one threshold per image, a multiple of its mean importance.

Axis legend: `b` images of one shape, `rows cols` cells of one scale; maps and masks as `apt_code.selection` has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from apt_code.exact_sum import exact_sum
from apt_code.importance.common import PAD_VALUE
from apt_code.selection.common import check_maps
from apt_code.selection.settings import check_multiple
from apt_code.selection.tiling import tile


def select_patches_by_threshold_v2(entropy_maps: Mapping[int, Tensor], alpha: float = 1.0) -> dict[int, Tensor]:
    """Rule `v2`: one threshold per image for all scales, `alpha × mean importance` of its complete coarsest cells.

    A larger alpha keeps more cells whole, so it gives *fewer* patches. An image too small for a complete cell of the
    coarsest scale uses the coarsest scale that has one. Masks as `select_patches_by_threshold`.
    """
    return tile(entropy_maps, rule_v2(entropy_maps, alpha))


def rule_v2(maps: Mapping[int, Tensor], alpha: float) -> dict[int, Tensor]:
    """As `rule_v1`, for `v2`."""
    check_multiple("v2", alpha)
    sides = check_maps(maps)
    threshold = maps[sides[0]].new_full((len(maps[sides[0]]), 1, 1), -math.inf, dtype=torch.float64)
    for side in sides[1:]:  # the coarsest scale that has a complete cell has the last word
        complete = maps[side] < PAD_VALUE
        count = complete.sum((1, 2))
        # Fixed point keeps the mean independent of the order of summation, and so of the device.
        fixed = torch.where(complete, maps[side], 0.0).double().mul(2.0**32).round().long()
        mean = exact_sum(fixed, (1, 2), PAD_VALUE * 2.0**32) / 2.0**32 / count
        threshold = torch.where((count > 0).view(-1, 1, 1), (alpha * mean).view(-1, 1, 1), threshold)
    return {side: maps[side].double() < threshold for side in sides[1:]}
