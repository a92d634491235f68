"""The selection settings of an image processor: what they are, where they come from, and their checks.

The first that says something wins: the call, the image processor's attributes (from its constructor, set later, or
loaded with it), the environment variable `TRANSFORMERS_APT_SETTINGS`, the package default.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers.utils import logging

from apt_code.importance import IMPORTANCE_METHODS
from apt_code.selection import BUDGETED, SELECTION_METHODS, check_alpha
from apt_code.selection.settings import check_thresholds

logger = logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")

OFF = "off"
"""The method that leaves upstream's preprocessing as it is, bit for bit."""

NUM_SCALES = 3
"""14, 28 and 56 px."""

ENVIRONMENT = "TRANSFORMERS_APT_SETTINGS"
"""Holds settings as a JSON object, for programs whose calls cannot be edited."""

DEFAULTS: Mapping[str, Any] = {
    "patch_selection_method": "v1",
    "alpha": 1.0,
    "importance_method": "entropy",
    "thresholds": None,
}
"""The settings:

- `patch_selection_method`: how patches are selected. `"v1"` (fixed thresholds), `"v2"` (threshold alpha × mean
  importance), `"budget"` (a fraction alpha of the patches), `"joint"` (the same in fewer language tokens) or `"off"`
  (upstream).
- `alpha`: for `"budget"` and `"joint"` the fraction of full-resolution patches to keep, 0 to 1. For `"v2"` the
  multiple of the mean importance, 0 or more: larger gives fewer patches. `"v1"` and `"off"` ignore it.
- `importance_method`: what is at stake in a cell, `"entropy"`, `"laplacian"` or `"upsample_mse"`.
- `thresholds`: for `"v1"`, cells of 28 and of 56 px with less importance than this stay whole, `[28 px, 56 px]`, in
  the unit of the importance map. `None` takes the map's own, `[3, 2]` bits for entropy.
"""

USED_BY: Mapping[str, frozenset[str]] = {
    **{name: method.reads for name, method in SELECTION_METHODS.items()},
    OFF: frozenset(),
}
"""The settings that each method reads."""


def check_selection(
    patch_selection_method: str | None = None,
    alpha: float | None = None,
    importance_method: str | None = None,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Refuse settings that cannot be used; `None` stands for "not given".

    Raises:
        TypeError, ValueError: with the value, what was expected and what to do.
    """
    for name, value, known in (
        ("patch_selection_method", patch_selection_method, [*SELECTION_METHODS, OFF]),
        ("importance_method", importance_method, sorted(IMPORTANCE_METHODS)),
    ):
        # asked for its type first: a list cannot be looked up, and an array has no one truth value
        if value is not None and not (isinstance(value, str) and value in known):
            raise ValueError(f"{name}={value!r}: expected one of {known}")
    if alpha is not None:
        check_alpha(patch_selection_method or DEFAULTS["patch_selection_method"], alpha)
    if thresholds is not None:
        check_thresholds(thresholds, NUM_SCALES)


def names_of(image_processor: Any) -> tuple[str, ...]:
    """The settings that this image processor has no other use for: a subclass may have an `alpha` of its own."""
    own = set(getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", ()))
    if "patch_selection_method" in own:  # written for this package
        return tuple(DEFAULTS)
    return tuple(name for name in DEFAULTS if name not in own)


def take(image_processor: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the settings that are given out of a call's arguments."""
    taken = {name: arguments.pop(name) for name in names_of(image_processor) if name in arguments}
    return {name: value for name, value in taken.items() if value is not None}


@dataclass(frozen=True)
class Resolved:
    """What the sources of a call's settings come to.

    Attributes:
        values: all settings.
        asked: somebody asked for something, so that the package default is not what decides.
        only_by_environment: and nobody but the environment variable did.
    """

    values: dict[str, Any]
    asked: bool
    only_by_environment: bool

    @property
    def method(self) -> str:
        return str(self.values["patch_selection_method"])

    @property
    def used(self) -> dict[str, Any]:
        """The method, and the settings that it reads."""
        names = ("patch_selection_method", *sorted(USED_BY[self.method]))
        return {name: self.values[name] for name in names}


def resolve(image_processor: Any, given: Mapping[str, Any]) -> Resolved:
    """The settings of a call that names `given`.

    Raises:
        TypeError, ValueError: one that cannot be used.
    """
    sources = (given, attributes_of(image_processor), of_environment())
    values = dict(DEFAULTS)
    for source in reversed(sources):
        values.update(source)
    check_selection(**values)
    asked = any(sources)
    _name_what_has_no_effect(sources, values)
    return Resolved(values, asked, asked and not any(sources[:2]))


def attributes_of(image_processor: Any) -> dict[str, Any]:
    """The settings that somebody gave to an image processor or to its class."""
    found = {}
    for name in names_of(image_processor):
        value = vars(image_processor).get(name)
        if value is None:  # a class attribute that differs from ours was set by a subclass, or by a program
            value = getattr(type(image_processor), name, None)
            value = None if value == DEFAULTS[name] else value
        if value is not None:
            found[name] = value
    return found


def of_environment() -> dict[str, Any]:
    """The settings of `TRANSFORMERS_APT_SETTINGS`.

    Raises:
        ValueError: it holds something else.
    """
    return dict(_parse(os.environ.get(ENVIRONMENT, "")))


@lru_cache(maxsize=8)
def _parse(text: str) -> Mapping[str, Any]:
    if not text.strip():
        return {}
    example = """expected a JSON object, for example {"patch_selection_method": "budget", "alpha": 0.3}"""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{ENVIRONMENT}={text!r} is no JSON ({error}); {example}") from error
    if not isinstance(found, dict) or not set(found) <= set(DEFAULTS):
        raise ValueError(f"{ENVIRONMENT}={text!r}: {example}, with keys among {list(DEFAULTS)}")
    found = {name: value for name, value in found.items() if value is not None}
    try:
        check_selection(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{ENVIRONMENT}={text!r}: {error}") from error
    return found


def _name_what_has_no_effect(sources: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> None:
    """Say so of settings that came with the method, or closer to the call, and that it does not read."""
    method = str(values["patch_selection_method"])
    source_of_method = next(
        (i for i, source in enumerate(sources) if "patch_selection_method" in source), len(sources)
    )
    with_the_method = sources[: source_of_method + 1]
    if method == OFF:  # what an attribute says beside an `off` of its own is kept for later
        with_the_method = with_the_method[:1]
    given = {name for source in with_the_method for name in source}
    for name in sorted(given - USED_BY[method] - {"patch_selection_method"}):
        logger.warning_once(
            f"{name}={values[name]} has no effect with patch_selection_method={method!r}; it is used by "
            f"{[other for other, used in USED_BY.items() if name in used]}."
        )
    if method in BUDGETED and values["alpha"] == 1:
        logger.warning_once(
            f"patch_selection_method={method!r} with alpha=1 keeps every patch and saves nothing; pass alpha, the "
            "fraction of patches to keep, for example 0.3."
        )
