"""`fit`: the largest picture whose language tokens are no more than a limit.

It is no rule over importance maps: it chooses the resolution, and leaves the tiling of each candidate to a rule. The
candidates are fractions of the full area, an eighth of an octave apart. Detail does not shrink with the picture, so
tokens fall more slowly than the area, about as its power of 0.75 (docs/experiments.md). That says from the picture at
full size which candidate to try first; those that turn out too dear are stepped over. The order is the same for every
limit, so a larger limit never gets a smaller picture.
"""

from __future__ import annotations

from collections.abc import Iterator

STEPS = 8
"""Candidates for each halving of the area."""

EXPONENT = 0.75
"""Of the area, that tokens fall with."""

HALVINGS = 40
"""After so many no image is left to be made smaller."""


def limit_of(cells: int, alpha: float, max_language_tokens: int | None = None) -> int:
    """The most language tokens that a picture may have, at least 1.

    Args:
        cells: its merge cells at full size, which are upstream's language tokens.
        alpha: the fraction of them, 0 to 1.
        max_language_tokens: and not more than this.
    """
    limit = max(1, round(alpha * cells))
    return limit if max_language_tokens is None else min(limit, max_language_tokens)


def fractions_to_try(tokens: int, cells: int, limit: int) -> Iterator[float]:
    """Fractions of the full area, largest first, from the one that is expected to fit.

    Args:
        tokens: language tokens of the picture at full size.
        cells: its merge cells, which no tiling has more tokens than.
        limit: the most tokens that it may have.
    """
    for step in range(1, STEPS * HALVINGS + 1):
        fraction = 2 ** (-step / STEPS)
        if min(tokens * fraction**EXPONENT, cells * fraction) <= limit:
            yield fraction
