"""From a call's resized images to rows and layouts: what the image processors of both backends share.

Axis legend: `b` images of one shape, `n` patches, `c` channels, `p` patch side in pixels.
"""

import inspect
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature

from apt_code.importance.common import are_grey_levels
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.patch_packing import Affine, RowPacker
from apt_code.patch_tokenizer import PatchTokenizer
from transformers_apt.models import reach, settings
from transformers_apt.models.layouts import LAYOUT_KEY
from transformers_apt.models.programs import calling_program
from transformers_apt.models.settings import NUM_SCALES, OFF, logger

GROUPED_PIXELS = 2**18
"""Images up to this size are worked on as a batch: beyond it, stacking them costs more than the calls it saves."""

READABLE_CHANNELS = (1, 3)
"""The numbers of channels that an importance map can read."""


@dataclass(frozen=True)
class PatchSelector:
    """One call's way from resized images to rows, the same for both backends.

    Attributes:
        settings: all of them, as `Resolved.values`.
        patch_size, merge_size: of the image processor.
        grey_scale: what a floating-point pixel is multiplied by to be a grey level in [0, 255]; integer pixels are
            grey levels already.
        pack: makes rows of the chosen patches with the backend's rescaling and normalisation.
    """

    settings: Mapping[str, Any]
    patch_size: int
    merge_size: int
    grey_scale: float
    pack: RowPacker

    @classmethod
    def of_call(
        cls,
        settings: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        normalise: Callable[[Tensor], Tensor],
        affine: Affine | None,
    ) -> "PatchSelector":
        """From a `_preprocess` call's arguments; `normalise` and `affine` as `RowPacker`."""
        pack = RowPacker(kwargs["patch_size"], kwargs["temporal_patch_size"], normalise, affine)
        return cls(settings, kwargs["patch_size"], kwargs["merge_size"], _grey_scale(kwargs), pack)

    def choose(
        self, images: Tensor, readable: Sequence[bool]
    ) -> tuple[list[PatchLayout], list[dict[str, Any] | None]]:
        """Choose the patches of a batch of resized, not yet rescaled images `(b, c, H, W)`.

        Args:
            images: the batch.
            readable: whether each can be chosen on; of the others every patch is kept.

        Returns:
            One layout and one budget info per image.

        Raises:
            ValueError: images that are not made of whole merge cells.
        """
        height, width = images.shape[-2:]
        unit = self.patch_size * self.merge_size
        if height % unit or width % unit:
            raise ValueError(
                f"an image of {height}×{width} px: expected sides that are multiples of {unit} "
                "(patch_size × merge_size); leave do_resize on, or resize the image so"
            )
        everything = PatchLayout.uniform((height // self.patch_size, width // self.patch_size))
        if not any(readable):
            return [everything] * len(images), [None] * len(images)
        chosen = images if all(readable) else images[list(readable)]
        if chosen.is_floating_point():  # bicubic resizing overshoots, by any amount
            chosen = (chosen * self.grey_scale if self.grey_scale != 1 else chosen).clamp(0, 255)
        tokenizer = PatchTokenizer(num_scales=NUM_SCALES, base_patch_size=self.patch_size, **self.settings)
        found = iter(tokenizer.select_layouts(chosen))
        layouts = [next(found) if good else everything for good in readable]
        return layouts, [tokenizer.last_budget_info if good else None for good in readable]

    def __call__(self, images: Sequence[Tensor], readable: Sequence[bool], group: bool = True) -> "Selection":
        """Choose and cut the patches of a call's images, `(c, H, W)` each, as the backend has them after resizing.

        Images of one shape are worked on as one batch, unless `group` forbids it or copying them together would cost
        more than it saves. The result is the same.
        """
        batches: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            together = group and image.shape[-2] * image.shape[-1] <= GROUPED_PIXELS
            batches.setdefault((image.shape, image.dtype) if together else i, []).append(i)
        layouts: list[Any] = [None] * len(images)
        infos: list[Any] = [None] * len(images)
        stacked = []
        for members in batches.values():
            batch = torch.stack([images[i] for i in members]) if len(members) > 1 else images[members[0]].unsqueeze(0)
            stacked.append((batch, members))
            for i, layout, info in zip(members, *self.choose(batch, [readable[i] for i in members]), strict=True):
                layouts[i], infos[i] = layout, info
        starts = [0, *itertools.accumulate(layout.num_patches for layout in layouts)]
        first = stacked[0][0]
        rows = torch.empty((starts[-1], self.pack.row_length(first)), dtype=torch.float32, device=first.device)
        for batch, members in stacked:
            self.pack.write(batch, [layouts[i] for i in members], rows, [starts[i] for i in members])
        return Selection(rows, layouts, infos)


@dataclass(frozen=True)
class Selection:
    """What became of a call's images, in their order.

    Attributes:
        rows: `(n, c·t·p·p)` float32, the rows of all images.
        layouts, infos: each image's layout and budget info.
    """

    rows: Tensor
    layouts: list[PatchLayout]
    infos: list[dict[str, Any] | None]


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


def preprocess(
    image_processor: Any,
    upstream: Callable[..., BatchFeature],
    arguments: dict[str, Any],
    normalise: Callable[[Tensor], Tensor],
    resized: Callable[[], Sequence[Tensor]],
    affine: Callable[[], Affine | None] = lambda: None,
) -> BatchFeature:
    """A backend's `_preprocess`: upstream's own for `"off"`, else the chosen patches and their layout.

    Args:
        image_processor, upstream: as the overlay was called.
        arguments: as `named_arguments`.
        normalise: as `RowPacker`.
        resized: gives the images after resizing, `(c, H, W)` each.
        affine: gives what `RowPacker` wants; like `resized`, not asked for `"off"`.
    """
    call = reach.current_call(image_processor)
    given = {**settings.take(image_processor, arguments), **call.given}
    resolved = settings.resolve(image_processor, given)
    images = arguments["images"]
    if not is_adaptive(call, resolved, images, arguments):
        _last_calls.by_processor[image_processor] = LastCall([None] * len(images), adaptive=False)
        return upstream(image_processor, **arguments)
    readable = _are_readable(images, _grey_scale(arguments))
    select = PatchSelector.of_call(resolved.values, arguments, normalise, affine())
    found = select(resized(), readable, group=not arguments.get("disable_grouping"))
    _last_calls.by_processor[image_processor] = LastCall(found.infos, adaptive=True)
    grids = [[1, *layout.grid] for layout in found.layouts]
    patches = torch.cat([layout.patches for layout in found.layouts])
    data: dict[str, Any]
    if isinstance(images[0], np.ndarray):  # the PIL backend's; without `return_tensors` they stay what they are
        data = {
            "pixel_values": found.rows.numpy(),
            "image_grid_thw": np.array(grids, np.int64),
            LAYOUT_KEY: patches.numpy(),
        }
    else:  # the grids, as upstream has them, on the default device
        grid_thw = torch.tensor(grids, dtype=torch.int64)
        data = {"pixel_values": found.rows, "image_grid_thw": grid_thw, LAYOUT_KEY: patches}
    return BatchFeature(data, tensor_type=arguments["return_tensors"])


# -------------------------------------------------------------------- adaptive or not


def is_adaptive(
    call: reach.Call, resolved: settings.Resolved, images: Sequence[Any], arguments: Mapping[str, Any]
) -> bool:
    """Whether this call chooses patches; if not, upstream works as if this package were not there.

    Raises:
        ValueError: somebody asked for what cannot be had.
    """
    if resolved.method == OFF:
        return False
    if not resolved.asked:
        if not reach.default_reaches(call, arguments["patch_size"]):
            return False
        _check_images(images)
        obstacle = _obstacle(images, arguments)
        if obstacle:
            logger.warning_once(f"{obstacle}; they stay off.")
        return obstacle is None
    asked_for = f"patch_selection_method={resolved.method!r}"
    if call.processor is not None and not reach.is_supported(call.processor):
        refusal = (
            f"{asked_for} with {type(call.processor).__name__}: adaptive patches are supported for "
            f"{reach.SUPPORTED_FAMILIES} only"
        )
        if resolved.only_by_environment:  # which speaks to every processor of the process
            logger.warning_once(f"{settings.ENVIRONMENT}: {refusal}; this one works as without it.")
            return False
        raise ValueError(f"{refusal}; leave the argument out, or pass {OFF!r}")
    program = calling_program()
    if program is not None:
        raise ValueError(
            f"{asked_for} in {program.name}, which {program.why}: it cannot read the adaptive patches of "
            f"transformers-apt. Pass patch_selection_method={OFF!r}, or leave the setting out"
        )
    _check_images(images)
    obstacle = _obstacle(images, arguments)
    if obstacle:
        raise ValueError(f"{obstacle}; or pass patch_selection_method={OFF!r}")
    return True


def refuse_ignored(call: reach.Call, output: Any) -> None:
    """Refuse the output of an image processor that was asked for patches and, cutting them itself, ignored it.

    Raises:
        ValueError: so it is.
    """
    image_processor = call.image_processor
    if not isinstance(output, Mapping) or LAYOUT_KEY in output:  # a subclass may return what it likes
        return
    resolved = settings.resolve(image_processor, call.given)
    if resolved.asked and resolved.method != OFF and not resolved.only_by_environment:
        raise ValueError(
            f"patch_selection_method={resolved.method!r} with {type(image_processor).__name__}, which cuts patches "
            f"itself and made no layout: call upstream's _preprocess from its own, or pass {OFF!r}"
        )


def _obstacle(images: Sequence[Any], arguments: Mapping[str, Any]) -> str | None:
    """Why patches cannot be chosen on these images, if so."""
    if arguments["merge_size"] != MERGE_SIZE:
        return f"merge_size={arguments['merge_size']} with adaptive patches: expected {MERGE_SIZE}, Qwen2-VL's"
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


def _check_images(images: Sequence[Any]) -> None:
    """Refuse a call without a pixel, where upstream would divide by zero.

    Raises:
        ValueError: no image, or an image without a pixel.
    """
    if not images:
        raise ValueError("images=[]: expected at least one image; leave the argument out for a prompt of text alone")
    for i, image in enumerate(images):
        if 0 in image.shape:
            raise ValueError(
                f"image {i} has the shape {tuple(image.shape)}: expected at least one pixel; leave the image out"
            )


def _grey_scale(arguments: Mapping[str, Any]) -> float:
    """What a floating-point pixel is multiplied by to be a grey level: rescaled pixels are meant to be in [0, 1]."""
    return round(arguments["rescale_factor"] * 255, 9) if arguments["do_rescale"] else 255.0


def _are_readable(images: Sequence[Any], grey_scale: float) -> list[bool]:
    """Whether the values of each image, before resizing, can be grey levels in [0, 255]; says so where they cannot.

    Patches chosen on other values (already rescaled or normalised, 16 bits) would throw the image away without a word.

    Raises:
        ValueError: a pixel that is not finite.
    """
    readable = []
    for i, image in enumerate(images):
        if image.dtype in (torch.uint8, np.uint8):
            readable.append(True)
            continue
        lowest, highest = _extremes(image)
        if image.dtype.is_floating_point if isinstance(image, Tensor) else np.issubdtype(image.dtype, np.floating):
            lowest, highest = lowest * grey_scale, highest * grey_scale
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise ValueError(
                f"image {i} holds NaN or infinite pixels: expected finite values in [0, 255] (or in [0, 1], with the "
                f"rescaling that fits); replace them (torch.nan_to_num), or pass patch_selection_method={OFF!r}"
            )
        readable.append(bool(are_grey_levels(lowest, highest)))
    if not all(readable):  # a constant text, so that it is said once
        logger.warning_once(
            "An image holds pixels that cannot be grey levels, expected 0 to 255: patches cannot be chosen on it, and "
            "all are kept. Pass uint8 images, or floats that do_rescale (which assumes 0 to 255) or its absence "
            f"(which assumes 0 to 1) fits; or turn adaptive patches off with patch_selection_method={OFF!r}."
        )
    return readable


def _extremes(image: Any) -> tuple[float, float]:
    """The smallest and the largest value of an image of either backend; NaN where it holds one."""
    if isinstance(image, np.ndarray):
        return float(image.min()), float(image.max())
    values = image.detach() if image.is_floating_point() else image.float()  # not every integer type has a maximum
    lowest, highest = torch.stack(values.aminmax()).tolist()
    return lowest, highest


# -------------------------------------------------------------------- what the last call did


@dataclass(frozen=True)
class LastCall:
    """What an image processor's last call did: the budget info of each image, and whether there are layouts."""

    infos: list[dict[str, Any] | None]
    adaptive: bool


class _LastCalls(threading.local):
    """Per thread, the last call of each image processor; kept outside the processor so that it is never saved."""

    def __init__(self) -> None:
        self.by_processor: weakref.WeakKeyDictionary[Any, LastCall] = weakref.WeakKeyDictionary()


_last_calls = _LastCalls()


@property  # type: ignore[misc]
def last_budget_info(self: Any) -> list[dict[str, Any] | None] | None:
    """One dictionary per image of this thread's last call of this processor, or `None` before the first.

    Keys: `base_tokens`, `base_small_tokens`, `budget`, `k`, `alpha`, `actual`, as
    `apt_code.PatchTokenizer.last_budget_info`. An entry is `None` where the method was neither `"budget"` nor
    `"joint"`, or every patch was kept because the image could not be read.
    """
    last = _last_calls.by_processor.get(self)
    return None if last is None else last.infos


def makes_layouts(processor: Any) -> bool:
    """Whether this thread's last call of a processor returned a layout; before the first, whether a call would."""
    image_processor = processor.image_processor
    if not reach.is_shared(image_processor):
        return False
    last = _last_calls.by_processor.get(image_processor)
    if last is not None:
        return last.adaptive
    resolved = settings.resolve(image_processor, {})
    if resolved.asked:
        return resolved.method != OFF
    return reach.default_reaches(reach.Call(image_processor, processor), image_processor.patch_size)
