"""Which processor a call of an image processor came through, and so whether the package default reaches it.

The default is lossy. It reaches a chain that is known from end to end: `Qwen2VLProcessor` itself, or an image
processor that no processor owns, in a process without a program of the table in `programs.py`.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import transformers
from torch.utils.weak import WeakIdKeyDictionary

from transformers_apt.models.programs import loaded_program
from transformers_apt.models.settings import DEFAULTS, ENVIRONMENT, OFF, SHARED, logger

PATCH_SIZE = 14
"""Qwen2-VL's. A lone image processor with another one belongs to another family."""

_TURN_OFF = (
    "images_kwargs={'patch_selection_method': 'off'} for a call, processor.image_processor.patch_selection_method = "
    f"'off' for a processor, {ENVIRONMENT}='{{\"patch_selection_method\": \"off\"}}' or TRANSFORMERS_APT=0 in the "
    "environment for a process."
)
FIRST_USE_NOTICE = (
    "Adaptive patches are on for Qwen2-VL: plain regions of an image become 28- and 56-px patches. That saves tokens "
    "in the vision tower (56-px patches also in the language model) and can lose fine detail. To turn this off: "
    f"{_TURN_OFF} (This notice appears once.)"
)


def is_shared(image_processor: Any) -> bool:
    """Whether this is the image processor that Qwen-VL and about fifteen other families share, or a subclass."""
    return isinstance(image_processor, SHARED)


def is_supported(processor: Any) -> bool:
    """Whether the models that this processor serves read mixed scales: `models.processing` says so of each family."""
    return getattr(type(processor), "reads_patch_layouts", False)


def default_of(processor: Any) -> str:
    """The method where nobody asked for one. Of the family's own class: what a subclass counts is not known."""
    return vars(type(processor)).get("patch_selection_default", OFF)


# -------------------------------------------------------------------- ownership


class Owner(NamedTuple):
    """A processor class that an image processor belongs to.

    Attributes:
        name: its name.
        reads_layouts: whether the models that it serves read mixed scales.
    """

    name: str
    reads_layouts: bool

    @classmethod
    def of(cls, processor: Any) -> "Owner":
        return cls(type(processor).__name__, is_supported(processor))


_owners: MutableMapping[Any, Owner] = WeakIdKeyDictionary()
"""The last owner of each image processor. Kept outside them, so that it is neither saved nor seen."""


def mark_owned(image_processor: Any, owner: Owner) -> None:
    if is_shared(image_processor):
        _owners[image_processor] = owner


def mark_family(image_processor: Any, processor_class: str | None) -> None:
    """Note of a lone image processor that its checkpoint is another family's, by the name of the processor there."""
    if isinstance(processor_class, str) and processor_class != "Qwen2VLProcessor":
        found = getattr(transformers, processor_class, None)
        mark_owned(image_processor, Owner(processor_class, getattr(found, "reads_patch_layouts", False)))


def owner_of(image_processor: Any) -> Owner | None:
    return _owners.get(image_processor)


OWNER = "_transformers_apt_owner"
"""Where the owner stands in the state of an image processor that is copied or pickled.

It stays there where a pickle is loaded without this package, and is left out of what is loaded from files."""


def restore(self: Any, state: Any) -> None:
    """As `object` restores a state: a dictionary, or one and another of what lies in slots."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    self.__dict__.update(attributes or {})
    for name, value in (slots or {}).items():
        object.__setattr__(self, name, value)


def with_owner(image_processor: Any, state: Any) -> Any:
    """The state of an image processor, with its owner where `restore_with_owner` is going to read it."""
    owner = owner_of(image_processor)
    if owner is None or not isinstance(state, dict) or type(image_processor).__setstate__ is not restore_with_owner:
        return state
    return {**state, OWNER: tuple(owner)}  # no class of ours: it has to load where this package is missing


def restore_with_owner(self: Any, state: Any) -> None:
    """`__setstate__` of an image processor."""
    restore(self, state)
    owner = self.__dict__.pop(OWNER, None)
    if owner is not None:
        mark_owned(self, Owner(*owner))


# -------------------------------------------------------------------- the call under way


class Progress:
    """How far a call is: `_preprocess` has read its settings (a subclass that cuts patches itself never asks), and the
    call is over (a context that was copied during it may live longer)."""

    decided = False
    over = False


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an image processor.

    Attributes:
        image_processor: whose call it is.
        processor: the processor that makes it, `None` for a direct call.
        given: the settings that the call names. They travel here, because an image processor of somebody else's may
            take no arguments but its own.
        progress: shared by the same call with more settings named.
    """

    image_processor: Any
    processor: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    @property
    def owner(self) -> Owner | None:
        """What the image processor belongs to, `None` for a lone one."""
        return owner_of(self.image_processor) if self.processor is None else Owner.of(self.processor)

    def naming(self, given: Mapping[str, Any]) -> "Call":
        """The same call, with more settings named."""
        return replace(self, given={**self.given, **given}) if given else self


_call: ContextVar[Call | None] = ContextVar("transformers_apt_call", default=None)


def current_call(image_processor: Any) -> Call:
    """The call of this image processor that is under way in this context, or a new one."""
    call = _call.get()
    if call is None or call.image_processor is not image_processor or call.progress.over:
        return Call(image_processor)
    return call


def within(call: Call, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`work(*args, **kwargs)` while this call is under way in this context."""
    outer = _call.get()
    if outer is call:
        return work(*args, **kwargs)
    token = _call.set(call)
    try:
        return work(*args, **kwargs)
    finally:
        _call.reset(token)
        if outer is None or outer.progress is not call.progress:
            call.progress.over = True


# -------------------------------------------------------------------- the package default


class Default(NamedTuple):
    """What a call gets in which nobody named a method.

    Attributes:
        method: `"off"` where the package default does not reach.
        notice: what there is to say where nobody asked for anything.
    """

    method: str
    notice: str | None = None


def default_of_call(call: Call, patch_size: int) -> Default:
    """The package default, as far as it reaches this call of an image processor with patches of this size in px."""
    image_processor, processor = call.image_processor, call.processor
    known = type(image_processor) in SHARED and patch_size == PATCH_SIZE
    if not known or (owner_of(image_processor) is not None if processor is None else default_of(processor) == OFF):
        return Default(OFF)
    program = loaded_program()
    if program is None:
        return Default(DEFAULTS["patch_selection_method"], FIRST_USE_NOTICE)
    return Default(
        OFF,
        f"Adaptive patches stay off in this process, because {program.name} is loaded: it {program.why}. To use "
        f"them where it works, ask for them: {ENVIRONMENT}="
        '\'{"patch_selection_method": "budget", "alpha": 0.3}\' in the environment. (This notice appears once.)',
    )


_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Where launchers say which process of a program this is."""


def say_once(notice: str) -> None:
    """Once for a program: not in its workers (of a DataLoader, say), and on its first rank only."""
    rank = next((os.environ[name] for name in _RANKS if os.environ.get(name)), "0")
    if multiprocessing.parent_process() is None and rank == "0":
        logger.warning_once(notice)
