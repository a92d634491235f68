"""Sums that do not depend on the order of summation, and so neither on the device."""

from __future__ import annotations

import math

from torch import Tensor


def exact_sum(values: Tensor, dims: tuple[int, ...], largest: float) -> Tensor:
    """The sum of int64 values over some dimensions, as float64 rounded once, also where 64 bits cannot hold it.

    Args:
        values: int64.
        dims: what to sum over; at most 2³¹ values each.
        largest: no value is further from 0 than this.
    """
    if math.prod(values.shape[dim] for dim in dims) * largest < 2**63:
        return values.sum(dims).double()
    # In halves of 32 bits. The upper sum has no rounding of its own while it lies below 2⁵³: sums below 2⁸⁵.
    low = (values & 0xFFFF_FFFF).sum(dims)
    high = (values >> 32).sum(dims) + (low >> 32)
    return high.double() * 2.0**32 + (low & 0xFFFF_FFFF).double()
