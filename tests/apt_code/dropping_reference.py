"""Both rules of dropping, read out slowly: pixel by pixel, in fractions, a unit when all around it are decided."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from tests.apt_code.references import Grid, Patch, canonical

Square = list[list[list[int]]]
"""Pixels by channel, row and column."""


def slow_rules(
    image: Any, patches: list[Patch] | set[Patch], grid: Grid, patch: int, flat: float | None, predict: float | None
) -> tuple[list[list[int]], Square]:
    """The patches that stay, in canonical order, and what is left of the picture in whole grey levels.

    Args:
        image: `[channel][row][column]`, numbers of any kind.
        patches: of one tiling.
        grid: in base cells. patch: side of one in pixels.
        flat, predict: the tolerances; `None` leaves the rule out.
    """
    units = [(row, col, size) for row, col, size in patches if size > 1 or (row % 2 == 0 and col % 2 == 0)]
    seen = _as_read(image, patches, patch)
    decided: dict[tuple[int, int], list[Fraction] | None] = {}  # merge cell -> root colour, or None if it is not flat
    dropped = set()
    while units:
        for unit in units:
            row, col, size = unit
            r, c, side = row // 2, col // 2, max(1, size // 2)
            left = [(r + i, c - 1) for i in range(side)] if c else []
            above = [(r - 1, c + i) for i in range(side)] if r else []
            if all(place in decided for place in left + above):
                break
        units.remove(unit)
        cells = {(r + i, c + j) for i in range(side) for j in range(side)}
        here, px = (r * 2 * patch, c * 2 * patch), side * 2 * patch
        root = None if flat is None else _colour_if_flat(image, row, col, size, patch, Fraction(flat))
        for beside in (left, above) if root is not None else ():
            roots = [decided[place] for place in beside]
            if roots and all(other is not None and _close(root, other, flat) for other in roots):
                dropped |= cells
                root = roots[0]
                _paint(seen, here, [[[_level(value)] * px] * px for value in root])
                break
        if predict is not None and not cells <= dropped:
            likely = _likely(seen, here, px, predict)
            if likely is not None and _apart(_square(seen, here, px), likely) <= predict:
                dropped |= cells
                root = None
                _paint(seen, here, likely)
        decided |= dict.fromkeys(cells, root)
    return [list(place) for place in canonical(patches) if (place[0] // 2, place[1] // 2) not in dropped], seen


def _level(value: Any) -> int:
    return math.floor(Fraction(value) + Fraction(1, 2))


def _as_read(image: Any, patches: list[Patch] | set[Patch], patch: int) -> Square:
    seen = [[[_level(value) for value in row] for row in channel] for channel in image]
    for row, col, size in patches:
        for y in range(row * patch, (row + size) * patch, size):
            for x in range(col * patch, (col + size) * patch, size):
                means = [sum(map(Fraction, _flat_list(image, k, y, x, size))) / size**2 for k in range(len(image))]
                _paint(seen, (y, x), [[[_level(mean)] * size] * size for mean in means])
    return seen


def _flat_list(image: Any, channel: int, top: int, left: int, side: int) -> list:
    return [value for row in image[channel][top : top + side] for value in row[left : left + side]]


def _square(seen: Square, place: tuple[int, int], side: int) -> Square:
    top, left = place
    return [[row[left : left + side] for row in channel[top : top + side]] for channel in seen]


def _paint(seen: Square, place: tuple[int, int], square: Square) -> None:
    for channel, rows in zip(seen, square, strict=True):
        for y, row in enumerate(rows):
            channel[place[0] + y][place[1] : place[1] + len(row)] = row


def _apart(one: Square, other: Square) -> int:
    return max(
        abs(a - b)
        for rows, others in zip(one, other, strict=True)
        for row, its in zip(rows, others, strict=True)
        for a, b in zip(row, its, strict=True)
    )


def _close(root: list[Fraction], other: list[Fraction], tolerance: float) -> bool:
    return all(abs(a - b) <= Fraction(tolerance) for a, b in zip(root, other, strict=True))


def _colour_if_flat(
    image: Any, row: int, col: int, size: int, patch: int, tolerance: Fraction
) -> list[Fraction] | None:
    """The mean per channel of the values that a model would read, where they deviate from it by no more."""
    side, means = patch * max(size, 2), []
    for channel in range(len(image)):
        values = [
            sum(map(Fraction, _flat_list(image, channel, row * patch + y, col * patch + x, size))) / size**2
            for y in range(0, side, size)
            for x in range(0, side, size)
        ]
        mean = sum(values) / len(values)
        if sum((value - mean) ** 2 for value in values) / len(values) > tolerance**2:
            return None
        means.append(mean)
    return means


def _likely(seen: Square, place: tuple[int, int], side: int, tolerance: float) -> Square | None:
    """LOCO-I's test on whole squares."""
    top, left = place
    west = _square(seen, (top, left - side), side) if left else None
    north = _square(seen, (top - side, left), side) if top else None
    if west is None or north is None:
        return north if west is None else west
    corner = _square(seen, (top - side, left - side), side)
    return north if _apart(corner, west) <= tolerance and _apart(corner, north) > tolerance else west
