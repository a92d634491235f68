"""The selection settings of an image processor: what they are, where they come from, and their checks.

The first that says something wins: the call, the image processor's attributes (from its constructor, set later, or
loaded with it), the environment variable `TRANSFORMERS_APT_SETTINGS`, the package default.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from types import MappingProxyType
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.utils import logging

from apt_code.dropping import check_tolerance
from apt_code.importance import IMPORTANCE_METHODS
from apt_code.selection import BUDGETED, SELECTION_METHODS, check_alpha
from apt_code.selection.settings import check_fraction, check_thresholds

logger = logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")

METHOD = "patch_selection_method"
"""The one setting whose name nobody else uses."""

OFF = "off"
"""The method that leaves upstream's preprocessing as it is, bit for bit."""

FIT = "fit"
"""The method that chooses the resolution as well: `apt_code.selection.fit`."""

NUM_SCALES = 3
"""Patches have a family's own patch size, twice and four times that: 14, 28 and 56 px, or 16, 32 and 64."""

SHARED = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
"""The image processors of all families, one for each backend."""

ENVIRONMENT = "TRANSFORMERS_APT_SETTINGS"
"""Holds settings as a JSON object, for programs whose calls cannot be edited."""

DEFAULTS: Mapping[str, Any] = {
    "patch_selection_method": "v1",
    "alpha": 1.0,
    "importance_method": "entropy",
    "thresholds": None,
    "drop_tolerance": None,
    "predict_tolerance": None,
    "max_language_tokens": None,
    "patch_parts": False,
}
"""The settings:

- `patch_selection_method`: how patches are selected. `"v1"` (fixed thresholds), `"v2"` (threshold alpha × mean
  importance), `"budget"` (a fraction alpha of the patches), `"joint"` (the same in fewer language tokens), `"fit"`
  (the largest picture within a number of language tokens) or `"off"` (upstream).
- `alpha`: for `"budget"` and `"joint"` the fraction of full-resolution patches to keep, for `"fit"` the fraction of
  upstream's language tokens that is never exceeded, 0 to 1. For `"v2"` the
  multiple of the mean importance, 0 or more: larger gives fewer patches. `"v1"` and `"off"` ignore it.
- `importance_method`: what is at stake in a cell, `"entropy"`, `"laplacian"`, `"upsample_mse"` or `"upsample_l4"`.
- `thresholds`: for `"v1"` and `"fit"`, cells of 28 and of 56 px with less importance than this stay whole,
  `[28 px, 56 px]`, in the unit of the importance map. `None` takes the map's own, `[3, 2]` bits for entropy.
- `drop_tolerance`: with any method but `"off"`, plain patches and cells that repeat the colour on their left or above,
  to within this many grey levels, are left out: no vision patch, no language token. 2 is recommended. `None` leaves
  nothing out; since that means "not given" in a call, `"off"` says so there.
- `predict_tolerance`: as well, or alone, patches and cells of whose pixels none differs by more grey levels than this
  from what the neighbour on the left or above predicts, are left out. `None` and `"off"` as above.
- `max_language_tokens`: for `"fit"`, the most language tokens of an image, 1 or more, whatever its size.
- `patch_parts`: with any method but `"off"`, whether coarse patches come at full resolution as well, in
  `image_patch_parts`, for a model with a branch that reads them (`transformers_apt.training`).
"""

OF_THE_TOKENIZER = tuple(name for name in DEFAULTS if name not in ("max_language_tokens", "patch_parts"))
"""Those that `PatchTokenizer` takes as well. It is given resized images, so a resolution is not its to choose, and it
makes no rows."""

ASKS_FOR: Mapping[str, str] = {"max_language_tokens": FIT, "thresholds": "v1"}
"""Settings that ask for a method by themselves, where none is named."""

OF_A_METHOD: Mapping[str, Mapping[str, Any]] = {FIT: {"importance_method": "upsample_mse", "drop_tolerance": 2.0}}
"""Defaults that a method has of its own."""

RECOMMENDED: Mapping[str, Any] = {METHOD: "v1", **OF_A_METHOD[FIT]}
"""What loses no text and saves most: docs/reading.md, docs/quality.md."""

USED_BY: Mapping[str, frozenset[str]] = {
    **{
        name: method.reads | {"drop_tolerance", "predict_tolerance", "patch_parts"}
        for name, method in SELECTION_METHODS.items()
    },
    FIT: frozenset(DEFAULTS) - {METHOD},
    OFF: frozenset({"patch_parts"}),  # of which there are none, without a coarse patch
}
"""The settings that each method reads."""


def check_selection(
    patch_selection_method: str | None = None,
    alpha: float | None = None,
    importance_method: str | None = None,
    thresholds: Sequence[float] | None = None,
    drop_tolerance: float | str | None = None,
    predict_tolerance: float | str | None = None,
    max_language_tokens: int | None = None,
    patch_parts: bool | None = None,
) -> None:
    """Refuse settings that cannot be used; `None` stands for "not given".

    Raises:
        TypeError, ValueError: with the value, what was expected and what to do.
    """
    for name, value, known in (
        ("patch_selection_method", patch_selection_method, [*SELECTION_METHODS, FIT, OFF]),
        ("importance_method", importance_method, sorted(IMPORTANCE_METHODS)),
    ):
        # asked for its type first: a list cannot be looked up, and an array has no one truth value
        if value is not None and not (isinstance(value, str) and value in known):
            raise ValueError(f"{name}={value!r}: expected one of {known}")
    if alpha is not None:
        if patch_selection_method == FIT:
            check_fraction(FIT, alpha, "language tokens of upstream that is allowed")
        else:
            check_alpha(patch_selection_method or "v2", alpha)  # whose range is the widest
    if thresholds is not None:
        check_thresholds(thresholds, NUM_SCALES)
    check_tolerance(drop_tolerance)
    check_tolerance(predict_tolerance, "predict_tolerance")
    if max_language_tokens is not None:
        if isinstance(max_language_tokens, bool) or not isinstance(max_language_tokens, Integral):
            raise TypeError(
                f"max_language_tokens={max_language_tokens!r} of type {type(max_language_tokens).__name__}: expected "
                "an integer"
            )
        if max_language_tokens < 1:
            raise ValueError(f"max_language_tokens={max_language_tokens}: expected 1 or more")
    if not (patch_parts is None or isinstance(patch_parts, bool)):
        raise TypeError(f"patch_parts={patch_parts!r} of type {type(patch_parts).__name__}: expected True or False")


def names_of(image_processor: Any, named: Collection[str] = ()) -> tuple[str, ...]:
    """The settings that an image processor, or its class, has no other use for, in a call that names `named`.

    A subclass may have an `alpha` of its own. It is taken for ours only beside a method.
    """
    cls = image_processor if isinstance(image_processor, type) else type(image_processor)
    if METHOD in named or METHOD in vars(image_processor) or _is_of_ours(cls):
        return names_beside(getattr(cls, "valid_kwargs", None))
    return (METHOD,)


def _is_of_ours(cls: type) -> bool:
    """Whether a class is the shared image processor itself, or names a method of its own."""
    return cls in SHARED or any(METHOD in vars(base) for base in cls.__mro__ if base not in SHARED)


@lru_cache(maxsize=64)
def names_beside(*typed_dicts: Any) -> tuple[str, ...]:
    """The settings that none of these declarations of arguments has a use of its own for."""
    own = {name for declared in typed_dicts for name in getattr(declared, "__annotations__", ())}
    if METHOD in own:  # written for this package
        return tuple(DEFAULTS)
    return tuple(name for name in DEFAULTS if name not in own)


def take(arguments: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Take the settings of these names that are given out of a call's arguments."""
    taken = {name: arguments.pop(name) for name in names if name in arguments}
    return {name: value for name, value in taken.items() if value is not None}


@dataclass(frozen=True)
class Resolved:
    """What the sources of a call's settings come to.

    Attributes:
        values: all settings.
        asked: somebody named the method, so that the package default is not what decides.
        anything: somebody named any setting.
        only_by_environment: the method comes from the environment variable, which speaks to a whole process.
        notices: what there is to say of settings that have no effect.
    """

    values: Mapping[str, Any]
    asked: bool
    anything: bool
    only_by_environment: bool
    notices: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        return str(self.values[METHOD])

    @property
    def used(self) -> dict[str, Any]:
        """The method, and the settings that it reads."""
        return {name: self.values[name] for name in (METHOD, *sorted(USED_BY[self.method]))}


def resolve(
    image_processor: Any,
    given: Mapping[str, Any],
    default: str = DEFAULTS[METHOD],
    of_server: Mapping[str, Any] | None = None,
) -> Resolved:
    """The settings of a call that names `given`, with `default` for the method where nobody names one.

    Args:
        image_processor: whose attributes count.
        given: the call's.
        default: the method where nobody names one.
        of_server: what a server was started with; between the call and the attributes.

    Raises:
        TypeError, ValueError: one that cannot be used.
    """
    sources = [given]
    for ask in (lambda: of_server or {}, lambda: attributes_of(image_processor), of_environment):
        if not _is_off(sources[-1].get(METHOD)):  # else nobody asks what lies further from the call
            sources.append(ask())
    frozen = tuple(tuple((name, *_frozen(value)) for name, value in source.items()) for source in sources)
    try:
        hash(frozen)
    except TypeError:  # a value that is refused, or a strange one
        found = _combined.__wrapped__(frozen, default)
    else:
        found = _combined(frozen, default)
    for notice in found.notices:
        logger.warning_once(notice)
    lists = {name: list(value) for name, value in found.values.items() if type(value) is list}
    return replace(found, values={**found.values, **lists}) if lists else found  # nobody writes to what is kept


def _frozen(value: Any) -> tuple[type, Any]:
    """A value that can be a key if anything can, and its type: 1 is not `True`. A list is written to later."""
    kind = type(value)
    return (kind, tuple(map(_frozen, value))) if kind in (list, tuple) else (kind, value)


def _thawed(kind: type, value: Any) -> Any:
    return kind(_thawed(*one) for one in value) if kind in (list, tuple) else value


@lru_cache(maxsize=64)
def _combined(frozen: tuple[tuple[tuple[str, type, Any], ...], ...], default: str) -> Resolved:
    """What sources come to, nearest first: the call, a server, the attributes and the environment, up to an `off`."""
    sources: list[Mapping[str, Any]] = [{name: _thawed(*value) for name, *value in source} for source in frozen]
    sources = _with_what_they_mean(sources)
    named = {name: value for found in reversed(sources) for name, value in found.items()}
    method = named.get(METHOD, default)
    of_method = OF_A_METHOD.get(method, {}) if isinstance(method, str) else {}
    values = {**DEFAULTS, **of_method, METHOD: method, **named}
    try:
        check_selection(**values)
    except (TypeError, ValueError) as error:
        blamed = set(sources[-1]).difference(*sources[:-1]) if len(sources) > _ENVIRONMENT_PLACE else ()
        if any(name in str(error) for name in blamed):  # errors are not kept: the variable is what it was
            raise type(error)(f"{error} ({ENVIRONMENT}={os.environ[ENVIRONMENT]!r})") from error
        raise
    by = next((i for i, found in enumerate(sources) if METHOD in found), None)
    notices = _what_has_no_effect(sources if by is None else sources[: by + 1], values)
    return Resolved(MappingProxyType(values), by is not None, any(sources), by == _ENVIRONMENT_PLACE, tuple(notices))


_ENVIRONMENT_PLACE = 3
"""Where the environment stands among the sources, if it was asked."""


def _with_what_they_mean(sources: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sources, nearest first, with the method that a setting asks for by itself, and without an alpha that was meant
    for another method than the one that holds."""
    found, method = list(sources), None
    for i, source in enumerate(found):
        if METHOD not in source:
            further = next((other[METHOD] for other in found[i + 1 :] if METHOD in other), None)
            meant = next((asked for name, asked in ASKS_FOR.items() if name in source), None)
            reads = USED_BY.get(further, frozenset()) if isinstance(further, str) else frozenset()
            if method is None and meant is not None and not any(name in reads for name in ASKS_FOR if name in source):
                found[i] = {**source, METHOD: meant}
        elif method is not None and _alphas_differ(method, source[METHOD]):
            found[i] = {name: value for name, value in source.items() if name != "alpha"}
        method = found[i].get(METHOD) if method is None else method
    return found


def _alphas_differ(method: Any, other: Any) -> bool:
    """Whether alpha means one thing to one method and another to the other."""
    if not (isinstance(method, str) and isinstance(other, str)):  # which is refused by its own check
        return True
    return method != other and not {method, other} <= set(BUDGETED)


def _is_off(method: Any) -> bool:
    return isinstance(method, str) and method == OFF  # an array has no one truth value


def attributes_of(image_processor: Any) -> dict[str, Any]:
    """The settings that somebody gave to an image processor or to its class."""
    found = {}
    own, of_class = vars(image_processor), vars(type(image_processor))
    shared = type(image_processor) in SHARED
    for name in names_of(image_processor):
        value = own.get(name)
        if value is None and not (shared and of_class.get(name) is DEFAULTS[name]):
            value = _of_class(image_processor, name)
        if value is not None:
            found[name] = value
    return found


def _of_class(image_processor: Any, name: str) -> Any:
    """A setting that a subclass, or a program, made a class attribute; `None` where it is only this package's."""
    cls = type(image_processor)
    for base in cls.__mro__ if name == METHOD or _is_of_ours(cls) else ():
        value = vars(base).get(name)
        if value is None or (value is DEFAULTS[name] and base in SHARED):
            continue
        if not hasattr(value, "__get__"):
            return value
        # a property or a method: only the name that is ours alone means ours
        return getattr(image_processor, name) if name == METHOD else None
    return None


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{ENVIRONMENT}={text!r} is no JSON ({error}); {example}") from error
    if not isinstance(found, dict) or not set(found) <= set(DEFAULTS):
        raise ValueError(f"{ENVIRONMENT}={text!r}: {example}, with keys among {list(DEFAULTS)}")
    found = {name: value for name, value in found.items() if value is not None}
    try:
        check_selection(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{ENVIRONMENT}={text!r}: {error}") from error
    return found


def _what_has_no_effect(sources: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> Iterator[str]:
    """What to say of settings that came with the method, or closer to the call, and that it does not read."""
    method = str(values[METHOD])
    if method == OFF and METHOD in sources[-1]:  # what an attribute says beside an `off` of its own is kept for later
        sources = sources[:1]
    for name in sorted({name for source in sources for name in source} - USED_BY[method] - {METHOD}):
        yield (
            f"{name}={values[name]} has no effect with patch_selection_method={method!r}; it is used by "
            f"{[other for other, used in USED_BY.items() if name in used]}."
        )
    tolerances = (values["drop_tolerance"], values["predict_tolerance"])
    if method in BUDGETED and values["alpha"] == 1 and all(check_tolerance(one) is None for one in tolerances):
        yield (
            f"patch_selection_method={method!r} with alpha=1 keeps every patch and saves nothing; pass alpha, the "
            "fraction of patches to keep, for example 0.3."
        )
