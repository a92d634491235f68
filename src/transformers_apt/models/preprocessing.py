"""From a call's resized images to rows and layouts: what the image processors of both backends share.

Axis legend: `b` images of one shape, `n` patches, `c` channels, `p` patch side in pixels.
"""

import inspect
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers.image_processing_utils import BatchFeature

from apt_code.patch_layout import MERGE_SIZE
from apt_code.patch_packing import Affine
from transformers_apt.models import families, pixels, reach, settings
from transformers_apt.models.layouts import COUNTS_KEY, KEYS, LAYOUT_KEY, PARTS_KEY
from transformers_apt.models.programs import calling_program
from transformers_apt.models.selector import PatchSelector
from transformers_apt.models.settings import OFF, logger

READABLE_CHANNELS = (1, 3)
"""The numbers of channels that an importance map can read."""


def named_arguments(upstream: Callable[..., Any], self: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A `_preprocess` call's arguments by name; a subclass may pass them by position, as upstream allows."""
    names = _parameters(upstream)
    if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
        upstream(self, *args, **kwargs)  # says what is wrong
    return {**dict(zip(names, args, strict=False)), **kwargs}


@lru_cache(maxsize=16)
def _parameters(upstream: Callable[..., Any]) -> tuple[str, ...]:
    """What can be passed by position, in order; looked up once, because it takes longer than a small image."""
    parameters = list(inspect.signature(upstream).parameters.values())[1:]
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD)


def call(
    upstream: Callable[..., BatchFeature], image_processor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> BatchFeature:
    """A call of an image processor, with the settings taken past upstream's check of arguments.

    Raises:
        ValueError: one that was asked for patches cut them itself and ignored it.
    """
    given = settings.take(kwargs, settings.names_of(image_processor, kwargs))
    under_way = reach.current_call(image_processor).naming(given)
    output = reach.within(under_way, upstream, image_processor, *args, **kwargs)
    if not under_way.progress.decided:
        refuse_ignored(under_way, output)
    return output


def preprocess(
    image_processor: Any,
    upstream: Callable[..., BatchFeature],
    arguments: dict[str, Any],
    normalise: Callable[[Tensor], Tensor],
    resize: Callable[[Sequence[Any], Any], Sequence[Tensor]],
    affine: Callable[[], Affine | None] = lambda: None,
) -> BatchFeature:
    """A backend's `_preprocess`: upstream's own for `"off"`, else the chosen patches and their layout.

    Args:
        image_processor, upstream: as the overlay was called.
        arguments: as `named_arguments`.
        normalise: as `RowPacker`.
        resize: of images to upstream's `size`, `(c, H, W)` each.
        affine: gives what `RowPacker` wants; like `resize`, not asked for `"off"`.
    """
    call = reach.current_call(image_processor)
    call.progress.decided = True
    _last_calls.by_processor.pop(image_processor, None)  # should this one fail, nothing stale is told
    given = {**settings.take(arguments, settings.names_of(image_processor, arguments)), **call.given}
    named = settings.METHOD in given
    default = reach.Default(OFF) if named else reach.default_of_call(call, arguments["patch_size"])
    resolved = settings.resolve(image_processor, given, default.method)
    if default.notice is not None and not resolved.anything:
        reach.say_once(default.notice)
    images = arguments["images"]
    ranges = adaptive_ranges(call, resolved, images, arguments)
    if ranges is None:
        _last_calls.by_processor[image_processor] = LastCall([None] * len(images), keys=())
        return upstream(image_processor, **arguments)
    select = PatchSelector.of_call(resolved.values, arguments, normalise, affine())
    found = select(images, pixels.are_readable(ranges), resize)
    _last_calls.by_processor[image_processor] = LastCall(found.infos, _keys_with(resolved.values))
    arrays = isinstance(images[0], np.ndarray)  # the PIL backend's; without `return_tensors` they stay what they are
    grids = [[1, *layout.grid] for layout in found.layouts]
    patches = [layout.patches for layout in found.layouts]
    counts = list(map(len, patches))
    data = {
        "pixel_values": found.rows,
        # as upstream has them, on the default device
        "image_grid_thw": torch.tensor(grids, dtype=torch.int64, device="cpu" if arrays else None),
        LAYOUT_KEY: torch.cat(patches),
        COUNTS_KEY: torch.tensor(counts, dtype=torch.int64, device="cpu"),
    }
    if found.parts is not None:
        data[PARTS_KEY] = found.parts
    made = {name: value.numpy() for name, value in data.items()} if arrays else data
    return BatchFeature(made, tensor_type=arguments["return_tensors"])


def _keys_with(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that a call with these settings returns beside upstream's."""
    if values[settings.METHOD] == OFF:
        return ()
    return KEYS if values["patch_parts"] else (LAYOUT_KEY, COUNTS_KEY)


# -------------------------------------------------------------------- adaptive or not


def adaptive_ranges(
    call: reach.Call, resolved: settings.Resolved, images: Sequence[Any], arguments: Mapping[str, Any]
) -> list[pixels.Range] | None:
    """The range of each image if this call chooses patches; `None` if upstream works as without this package.

    Raises:
        ValueError: somebody asked for what cannot be had.
    """
    if resolved.method == OFF or (resolved.asked and not _is_possible(call, resolved)):
        return None
    pixels.check(images)
    ranges: list[pixels.Range] = []
    obstacle = _obstacle(images, arguments)
    if obstacle is None:
        ranges = pixels.ranges_of(images, pixels.grey_scale(arguments))
        obstacle = pixels.not_finite(ranges)
    if obstacle is None:
        return ranges
    if resolved.asked:
        raise ValueError(f"{obstacle}; or pass patch_selection_method={OFF!r}")
    logger.warning_once(f"{obstacle}; they stay off.")
    return None


def _is_possible(call: reach.Call, resolved: settings.Resolved) -> bool:
    """Whether somebody reads the layouts that were asked for; only the environment variable, which speaks to every
    processor of a process, is answered with a warning where nobody does.

    Raises:
        ValueError: nobody does.
    """
    asked_for = f"patch_selection_method={resolved.method!r}"
    owner = call.owner
    if owner is not None and not owner.reads_layouts:
        refusal = f"{asked_for} with {owner.name}: adaptive patches are supported for {families.SUPPORTED} only"
        if resolved.only_by_environment:
            logger.warning_once(f"{settings.ENVIRONMENT}: {refusal}; this one works as without it.")
            return False
        raise ValueError(f"{refusal}; leave the argument out, or pass {OFF!r}")
    program = calling_program()
    if program is not None:
        raise ValueError(
            f"{asked_for} in {program.name}, which {program.why}: it cannot read the adaptive patches of "
            f"transformers-apt. Pass patch_selection_method={OFF!r}, or leave the setting out"
        )
    return True


def refuse_ignored(call: reach.Call, output: Any) -> None:
    """Refuse the output of an image processor that did not ask for its call's settings, and did otherwise.

    Raises:
        ValueError: so it is.
    """
    image_processor = call.image_processor
    if not isinstance(output, Mapping):  # a subclass may return what it likes
        return
    resolved = settings.resolve(image_processor, call.given, OFF)
    made = LAYOUT_KEY in output
    missed = resolved.method != OFF and not resolved.only_by_environment and not made
    if missed or (made and str(call.given.get(settings.METHOD)) == OFF):
        raise ValueError(
            f"patch_selection_method={resolved.method!r} with {type(image_processor).__name__}, which cuts patches "
            "itself, or in threads of its own: the setting did not reach them. Call upstream's _preprocess from its "
            "own, start threads with contextvars.copy_context().run, or set the attribute instead"
        )


def _obstacle(images: Sequence[Any], arguments: Mapping[str, Any]) -> str | None:
    """Why patches cannot be chosen on these images, if so."""
    if arguments["merge_size"] != MERGE_SIZE:
        return (
            f"merge_size={arguments['merge_size']} with adaptive patches: expected {MERGE_SIZE}, as all families have"
        )
    strange = pixels.not_numbers(images)
    if strange is not None:
        return strange
    channels = {image.shape[0] for image in images}
    if not channels <= set(READABLE_CHANNELS) or len(channels) > 1:
        return (
            f"images of {' and '.join(map(str, sorted(channels)))} channels with adaptive patches: expected 1 or 3, "
            "of all images the same; convert them to RGB"
        )
    for name in ("image_mean", "image_std") if arguments["do_normalize"] else ():
        values = arguments[name]
        if isinstance(values, (list, tuple)) and {len(values)} != channels:
            return f"{name} has {len(values)} values for images of {channels.pop()} channel(s) with adaptive patches"
    return None


# -------------------------------------------------------------------- what the last call did


@dataclass(frozen=True)
class LastCall:
    """What an image processor's last call did: the budget info of each image, and its keys beside upstream's."""

    infos: list[dict[str, Any] | None]
    keys: tuple[str, ...]


class _LastCalls(threading.local):
    """Per thread, the last call of each image processor; kept outside the processor so that it is never saved."""

    def __init__(self) -> None:
        self.by_processor: MutableMapping[Any, LastCall] = WeakIdKeyDictionary()


_last_calls = _LastCalls()


@property  # type: ignore[misc]
def last_budget_info(self: Any) -> list[dict[str, Any] | None] | None:
    """One dictionary per image of this thread's last call of this processor, or `None` before the first.

    Keys: `base_tokens`, `base_small_tokens`, `budget`, `k`, `alpha`, `actual`, as
    `apt_code.PatchTokenizer.last_budget_info`; where cells are left out also `dropped`, how many of the
    `actual` patches were. An entry is `None` where the method was neither `"budget"` nor `"joint"`, or every patch
    was kept because the image could not be read. For `"fit"`, with `cells` for upstream's language tokens: `alpha`,
    `cells`, `limit`, `language_tokens`, and `max_pixels`, the area that the picture was resized to at most.
    """
    last = _last_calls.by_processor.get(self)
    return None if last is None else last.infos


def keys_of(processor: Any) -> tuple[str, ...]:
    """What this thread's last call of a processor returned beside upstream's keys; before it, what a call would."""
    image_processor = processor.image_processor
    if not reach.is_shared(image_processor):
        return ()
    last = _last_calls.by_processor.get(image_processor)
    if last is not None:
        return last.keys
    default = reach.default_of_call(reach.Call(image_processor, processor), image_processor.patch_size)
    return _keys_with(settings.resolve(image_processor, {}, default.method).values)
