"""Names that upstream changed between the supported releases of transformers, all in one place."""

from collections.abc import Mapping
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")
"""The argument that holds the keys and values of earlier tokens: its name since 5.24, and before."""


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments, under either name, or `None`."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)
