"""Switching Adaptive Patch Tokenization on and off in the installed transformers.

`apply()` edits upstream's classes in place, all or nothing; `revert()` puts the very same objects back.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers_apt import __version__
from transformers_apt.engine import finder
from transformers_apt.engine.overlay import MISSING, IncompatibleTransformersError, Overlay

__all__ = ["IncompatibleTransformersError", "Status", "applied", "apply", "record_failure", "revert", "status"]

SUPPORTED_TRANSFORMERS = ((5, 18), (6, 0))
"""First supported release, and the first that is not."""

BASE = "qwen2_vl"
"""The family whose image processors all families share: without it, none can be switched on."""


def _modules_of(family: str) -> tuple[str, ...]:
    return tuple(f"transformers_apt.models.{family}.{module}" for module in finder.FAMILIES[family])


OVERLAY_MODULES = (
    "transformers_apt.models.processing_utils", "transformers_apt.models.generation", *_modules_of(BASE)
)  # fmt: skip
"""What has to be switched on, all or nothing. Each other family is switched on beside it, or not, by itself."""


@dataclass(frozen=True)
class Status:
    """Whether the patch is on.

    Attributes:
        active: adaptive patches are available in this process.
        package_version: of transformers-apt.
        transformers_version: of the installed transformers, `None` if it is not installed.
        supported: the range of transformers this package patches.
        reason: why the patch is off, if that is known.
        targets: the upstream members that are changed, `Class.member`.
        families: for each model family `None` where it reads adaptive patches, else why it does not.
    """

    active: bool
    package_version: str
    transformers_version: str | None
    supported: str
    reason: str | None
    targets: tuple[str, ...]
    families: Mapping[str, str | None]


class _Patch:
    """What was changed, and what it was before. One per process, as the classes it edits are."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.originals: list[tuple[type, str, Any]] = []
        self.failure: str | None = None
        self.families: dict[str, str | None] = {}


_patch = _Patch()


def apply() -> None:
    """Put Adaptive Patch Tokenization into the installed transformers. Does nothing if it is there already.

    Raises:
        IncompatibleTransformersError: transformers is not a supported release, or a class or method that the overlays
            change is not as they expect. Nothing has been changed then.
    """
    # The imports come first. They wake the start-up hook, which would call apply() again in the midst of this one; and
    # they may wait for another thread's import, which must not in turn wait for our lock.
    finder.uninstall()
    _check_version()
    overlays = _overlays()
    for overlay in overlays:
        overlay.resolve()
    others = {family: _changes_of(family) for family in finder.FAMILIES if family != BASE}
    with _patch.lock:
        if _patch.originals:
            return
        changes = [change for overlay in overlays for change in overlay.changes()]
        for found in others.values():
            changes += [] if isinstance(found, str) else found
        for target, name, value in changes:
            _patch.originals.append((target, name, target.__dict__.get(name, MISSING)))
            setattr(target, name, value)
        _patch.failure = None
        _patch.families = {family: found if isinstance(found, str) else None for family, found in others.items()}
        _patch.families[BASE] = None


def revert() -> None:
    """Give upstream's classes back the members they had, the very same objects. Does nothing if the patch is off.

    Called before transformers' Qwen2-VL modules are imported, it stops the start-up hook from patching them.
    """
    finder.uninstall()
    with _patch.lock:
        while _patch.originals:
            target, name, original = _patch.originals.pop()
            if original is MISSING:
                delattr(target, name)
            else:
                setattr(target, name, original)
        _patch.families = {}


@contextmanager
def applied() -> Iterator[None]:
    """The patch is on inside the block, and afterwards what it was before (about to come on counts as on).

    It switches the whole process: of blocks in several threads, the first that ends may switch it off for all.
    """
    was_on = status().active or finder.is_waiting()
    apply()
    try:
        yield
    finally:
        if not was_on:
            revert()


def status() -> Status:
    """Whether the patch is on, for which versions, and why not."""
    first, end = (".".join(map(str, version)) for version in SUPPORTED_TRANSFORMERS)
    targets = tuple(f"{target.__qualname__}.{name}" for target, name, _ in _patch.originals)
    return Status(
        active=bool(_patch.originals),
        package_version=__version__,
        transformers_version=_transformers_version(),
        supported=f">={first},<{end}",
        reason=_patch.failure,
        targets=targets,
        families={family: _patch.families.get(family, "the patch is off") for family in finder.FAMILIES},
    )


def record_failure(error: BaseException) -> None:
    """Remember why the start-up hook could not apply the patch, for `status()`."""
    _patch.failure = f"{type(error).__name__}: {error}"


def _transformers_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def _check_version() -> None:
    version = _transformers_version()
    if version is None:
        raise IncompatibleTransformersError("transformers is not installed; install 'transformers>=5.18,<6'")
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    first, end = SUPPORTED_TRANSFORMERS
    if not first <= release < end:
        raise IncompatibleTransformersError(
            f"transformers {version} is installed, but transformers-apt {__version__} supports "
            f"{status().supported}; install a release in that range"
        )


def _changes_of(family: str) -> list[tuple[type, str, Any]] | str:
    """What a family's overlays change, or why they cannot: an older release may lack it, a newer one differ."""
    try:
        return [change for overlay in _overlays(_modules_of(family)) for change in overlay.changes()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _overlays(modules: Sequence[str] | None = None) -> list[type[Overlay]]:
    """Every overlay class of the overlay modules (those of `OVERLAY_MODULES` by default), in order.

    Raises:
        IncompatibleTransformersError: an overlay module needs something that this transformers does not have.
    """
    found: list[type[Overlay]] = []
    for name in OVERLAY_MODULES if modules is None else modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise IncompatibleTransformersError(f"{name} cannot be imported here: {error}") from error
        members = vars(module).values()
        found += [m for m in members if isinstance(m, type) and issubclass(m, Overlay) and m.__module__ == name]
    return found
