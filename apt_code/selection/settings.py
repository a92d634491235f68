"""The checks of what a selection can be given: alpha, by what it means to a method, and thresholds."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence


def check_number(method: str, alpha: float) -> None:
    """Refuse an alpha that is no number. All that a method asks for which ignores it.

    Raises:
        TypeError: not a number.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"alpha is a number, got {alpha!r} of type {type(alpha).__name__}")


def check_fraction(method: str, alpha: float, of: str = "full-resolution patches to keep") -> None:
    """Refuse an alpha that is not a fraction, `of` the patches or of something else.

    Raises:
        TypeError: not a number. ValueError: outside [0, 1].
    """
    check_number(method, alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} with {method!r}: expected 0 <= alpha <= 1, the fraction of the {of}")


def check_multiple(method: str, alpha: float) -> None:
    """Refuse an alpha that is not a multiple of the mean importance.

    Raises:
        TypeError: not a number. ValueError: negative or not finite.
    """
    check_number(method, alpha)
    if not 0 <= alpha <= sys.float_info.max:  # not math.isfinite: it fails on huge integers
        raise ValueError(
            f"alpha={alpha} with {method!r}: expected a finite alpha >= 0, the multiple of the mean importance below "
            "which cells stay whole (larger alpha, fewer patches)"
        )


def check_thresholds(thresholds: Sequence[float], num_scales: int) -> list[float]:
    """The thresholds as floats, one per coarse scale.

    Raises:
        TypeError: not a sequence of numbers. ValueError: the wrong number of them, or NaN.
    """
    if isinstance(thresholds, (str, bytes)) or not isinstance(thresholds, Sequence):
        raise TypeError(f"thresholds is a list of numbers, got {thresholds!r}")
    for value in thresholds:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"thresholds holds numbers, got {value!r} in {list(thresholds)}")
    if len(thresholds) != num_scales - 1:
        raise ValueError(
            f"thresholds={list(thresholds)} for {num_scales} scales: expected {num_scales - 1} values, the threshold "
            "of each coarse scale from the finest up ([28 px, 56 px] for Qwen2-VL)"
        )
    try:
        found = [float(value) for value in thresholds]
    except OverflowError as error:
        raise ValueError(
            f"thresholds={list(thresholds)} holds an integer that no float can hold; expected numbers in the unit of "
            "the importance map, float('inf') to keep every cell whole"
        ) from error
    if any(math.isnan(value) for value in found):
        raise ValueError(
            f"thresholds={list(thresholds)} holds NaN; expected numbers in the unit of the importance map"
        )
    return found
