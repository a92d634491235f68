"""Which processor a call of an image processor came through, and so whether the package default reaches it.

The default is lossy. It reaches a chain that is known from end to end: `Qwen2VLProcessor` itself, or an image
processor that no processor owns, in a process without a program of the table in `programs.py`.
"""

import contextlib
import multiprocessing
import os
import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from transformers_apt.models.programs import loaded_program
from transformers_apt.models.settings import ENVIRONMENT, OFF, logger

SUPPORTED_FAMILIES = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5"
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
    return isinstance(image_processor, (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil))


def is_supported(processor: Any) -> bool:
    """Whether the models that this processor serves read mixed scales: `models.processing` says so of each family."""
    return getattr(type(processor), "reads_patch_layouts", False)


def default_of(processor: Any) -> str:
    """The method where nobody asked for one. Of the family's own class: what a subclass counts is not known."""
    return vars(type(processor)).get("patch_selection_default", OFF)


# -------------------------------------------------------------------- ownership

_owned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Image processors that a processor owns, by id. Kept outside them, so that it is never saved or copied."""


def mark_owned(image_processor: Any) -> None:
    if is_shared(image_processor):
        _owned[id(image_processor)] = image_processor


def mark_family(image_processor: Any, processor_class: str | None) -> None:
    """Note of a lone image processor that its checkpoint is another family's, by the name of the processor there."""
    if processor_class not in (None, "Qwen2VLProcessor"):
        mark_owned(image_processor)


def is_owned(image_processor: Any) -> bool:
    return _owned.get(id(image_processor)) is image_processor


# -------------------------------------------------------------------- the call under way


@dataclass(frozen=True)
class Call:
    """A call of an image processor.

    Attributes:
        image_processor: whose call it is.
        processor: the processor that makes it, `None` for a direct call.
        given: the settings that the call names. They travel here, because an image processor of somebody else's may
            take no arguments but its own.
    """

    image_processor: Any
    processor: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def naming(self, given: Mapping[str, Any]) -> "Call":
        """The same call, with more settings named."""
        return replace(self, given={**self.given, **given})


_call: ContextVar[Call | None] = ContextVar("transformers_apt_call", default=None)


def current_call(image_processor: Any) -> Call:
    """The call of this image processor that is under way in this thread."""
    call = _call.get()
    return call if call is not None and call.image_processor is image_processor else Call(image_processor)


@contextlib.contextmanager
def calling(call: Call) -> Iterator[None]:
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def default_reaches(call: Call, patch_size: int) -> bool:
    """Whether a call in which nobody asked for anything gets the package default; says so once, either way."""
    image_processor, processor = call.image_processor, call.processor
    if type(image_processor) not in (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil) or patch_size != PATCH_SIZE:
        return False
    if processor is None and is_owned(image_processor):
        return False
    if processor is not None and default_of(processor) == OFF:
        return False
    program = loaded_program()
    if program is not None:
        _say_once(
            f"Adaptive patches stay off in this process, because {program.name} is loaded: it {program.why}. To use "
            f"them where it works, ask for them: {ENVIRONMENT}="
            '\'{"patch_selection_method": "budget", "alpha": 0.3}\' in the environment. (This notice appears once.)'
        )
        return False
    _say_once(FIRST_USE_NOTICE)
    return True


def _say_once(notice: str) -> None:
    """Once for a program: not in its workers (of a DataLoader, say), and on its first rank only."""
    if multiprocessing.parent_process() is None and os.environ.get("RANK", "0") in ("", "0"):
        logger.warning_once(notice)
