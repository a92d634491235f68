"""The selection settings that the two image processors share: their defaults, their checks and their use.

Axis legend: `b` images of one shape, `n` patches, `c` channels, `p` patch side in pixels.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.utils import logging

from apt_code.entropy_utils import IMPORTANCE_METHODS, are_grey_levels
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.patch_packing import Affine, RowPacker
from apt_code.patch_tokenizer import PatchTokenizer
from apt_code.selection_settings import BUDGETED, SELECTION_METHODS, check_alpha, check_thresholds

logger = logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")

OFF = "off"
"""The method that leaves upstream's preprocessing as it is, bit for bit."""

NUM_SCALES = 3
"""14, 28 and 56 px."""

LAYOUT_KEY = "image_patch_layout"

GROUPED_PIXELS = 2**18
"""Images up to this size are worked on as a batch: beyond it, stacking them costs more than the calls it saves."""

DEFAULTS: Mapping[str, Any] = {
    "patch_selection_method": "v1",
    "alpha": 1.0,
    "importance_method": "entropy",
    "thresholds": None,
}


USED_BY: Mapping[str, frozenset[str]] = {
    "v1": frozenset({"importance_method", "thresholds"}),
    "v2": frozenset({"importance_method", "alpha"}),
    "budget": frozenset({"importance_method", "alpha"}),
    "joint": frozenset({"importance_method", "alpha"}),
    OFF: frozenset(),
}
"""The settings that each method reads."""

FIRST_USE_NOTICE = (
    "Adaptive patches are on for Qwen2-VL: plain regions of an image become 28- and 56-px patches. That saves tokens "
    "in the vision tower (56-px patches also in the language model) and can lose fine detail. To turn this off: "
    "images_kwargs={'patch_selection_method': 'off'} for a call, processor.image_processor.patch_selection_method = "
    "'off' for a processor, or the environment variable TRANSFORMERS_APT=0 for a process. (This notice appears once.)"
)


class SelectionKwargs(TypedDict, total=False):
    r"""
    patch_selection_method (`str`, *optional*, defaults to `"v1"`):
        How patches are selected: `"v1"` (fixed thresholds), `"v2"` (threshold alpha × mean importance), `"budget"`
        (a fraction alpha of the patches), `"joint"` (the same in fewer language tokens) or `"off"` (upstream).
    alpha (`float`, *optional*, defaults to 1.0):
        For `"budget"` and `"joint"` the fraction of full-resolution patches to keep, 0 to 1. For `"v2"` the multiple
        of the mean importance, 0 or more: larger gives fewer patches. `"v1"` and `"off"` ignore it.
    importance_method (`str`, *optional*, defaults to `"entropy"`):
        What is at stake in a cell: `"entropy"`, `"laplacian"` or `"upsample_mse"`.
    thresholds (`list[float]`, *optional*):
        For `"v1"`: cells of 28 and of 56 px with less importance than this stay whole, `[28 px, 56 px]`, in the unit
        of the importance map. Defaults to the map's own, `[3, 2]` bits for entropy.
    """

    patch_selection_method: str | None
    alpha: float | int | None
    importance_method: str | None
    thresholds: list[float | int] | tuple[float | int, ...] | None


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


def take_selection(image_processor: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the settings out of a call's arguments; what it left out is the processor's attribute or the default."""
    settings, given = {}, set()
    for name, default in DEFAULTS.items():
        by_call, attribute = kwargs.pop(name, None), getattr(image_processor, name, None)
        if by_call is not None and by_call != attribute:  # upstream fills in the attributes before it calls us
            given.add(name)
        settings[name] = next((value for value in (by_call, attribute, default) if value is not None), None)
    check_selection(**settings)
    method = str(settings["patch_selection_method"])
    if "patch_selection_method" not in given and method != OFF:  # then it came from where the attributes did
        given |= {name for name, default in DEFAULTS.items() if settings[name] != default}
    for name in sorted(given - USED_BY[method] - {"patch_selection_method"}):
        logger.warning_once(
            f"{name}={settings[name]} has no effect with patch_selection_method={method!r}; it is used by "
            f"{[other for other, used in USED_BY.items() if name in used]}."
        )
    if method in BUDGETED and settings["alpha"] == 1:
        logger.warning_once(
            f"patch_selection_method={method!r} with alpha=1 keeps every patch and saves nothing; pass alpha, the "
            "fraction of patches to keep, for example 0.3."
        )
    return settings


def without_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """An image processor's dictionary without the settings that nobody changed: other families save it too."""
    return {key: value for key, value in saved.items() if key not in DEFAULTS or value != DEFAULTS[key]}


@dataclass(frozen=True)
class PatchSelector:
    """One call's way from resized images to rows, the same for both backends.

    Attributes:
        settings: as `take_selection` returns them.
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
        """From a `_preprocess` call's arguments; `normalise` and `affine` as `RowPacker`.

        Raises:
            ValueError: another merge size than Qwen2-VL's.
        """
        if kwargs["merge_size"] != MERGE_SIZE:
            raise ValueError(
                f"merge_size={kwargs['merge_size']} with adaptive patches: expected {MERGE_SIZE}, Qwen2-VL's; "
                f"or pass patch_selection_method={OFF!r}"
            )
        logger.warning_once(FIRST_USE_NOTICE)
        # rescaled pixels are meant to be in [0, 1]
        grey_scale = round(kwargs["rescale_factor"] * 255, 9) if kwargs["do_rescale"] else 255.0
        pack = RowPacker(kwargs["patch_size"], kwargs["temporal_patch_size"], normalise, affine)
        return cls(settings, kwargs["patch_size"], kwargs["merge_size"], grey_scale, pack)

    def choose(self, images: Tensor) -> tuple[list[PatchLayout], list[dict[str, Any] | None]]:
        """Choose the patches of a batch of resized, not yet rescaled images `(b, c, H, W)`.

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
        tokenizer = PatchTokenizer(num_scales=NUM_SCALES, base_patch_size=self.patch_size, **self.settings)
        grey = images * self.grey_scale if images.is_floating_point() and self.grey_scale != 1 else images
        readable = _are_readable(grey)
        if all(readable):
            return tokenizer.select_layouts(grey), [tokenizer.last_budget_info] * len(grey)
        everything = PatchLayout.uniform((height // self.patch_size, width // self.patch_size))
        found = iter(tokenizer.select_layouts(grey[readable]) if any(readable) else [])
        layouts = [next(found) if good else everything for good in readable]
        return layouts, [tokenizer.last_budget_info if good else None for good in readable]

    def __call__(self, images: Sequence[Tensor], group: bool = True) -> "Selection":
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
            for i, layout, info in zip(members, *self.choose(batch), strict=True):
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


def preprocess(
    image_processor: Any,
    upstream: Callable[..., BatchFeature],
    images: Sequence[Any],
    kwargs: dict[str, Any],
    normalise: Callable[[Tensor], Tensor],
    resized: Callable[[], Sequence[Tensor]],
    affine: Callable[[], Affine | None] = lambda: None,
) -> BatchFeature:
    """A backend's `_preprocess`: upstream's own for `"off"`, else the chosen patches and their layout.

    Args:
        image_processor, upstream, images, kwargs: as the overlay was called.
        normalise: as `RowPacker`.
        affine: gives what `RowPacker` wants; like `resized`, not asked for `"off"`.
        resized: gives the images after resizing, `(c, H, W)` each.
    """
    settings = take_selection(image_processor, kwargs)
    if settings == DEFAULTS and kwargs["merge_size"] != MERGE_SIZE:  # nobody asked for what cannot be had
        logger.warning_once(
            f"merge_size={kwargs['merge_size']}: adaptive patches need {MERGE_SIZE}, Qwen2-VL's, and stay off."
        )
        settings["patch_selection_method"] = OFF
    if settings["patch_selection_method"] == OFF:
        _last_budget_info.by_processor[image_processor] = [None] * len(images)
        return upstream(image_processor, images, **kwargs)
    _check_images(images)
    select = PatchSelector.of_call(settings, kwargs, normalise, affine())
    found = select(resized(), group=not kwargs.get("disable_grouping"))
    _last_budget_info.by_processor[image_processor] = found.infos
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
    return BatchFeature(data, tensor_type=kwargs["return_tensors"])


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


def _are_readable(images: Tensor) -> list[bool]:
    """Whether each image's values can be grey levels in [0, 255]; says so where they cannot.

    Patches chosen on other values (already rescaled or normalised, 16 bits) would throw the image away without a word.
    """
    if images.dtype == torch.uint8:
        return [True] * len(images)
    images = images if images.is_floating_point() else images.float()  # not every integer type has a maximum
    lowest, highest = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    not_finite = ~(lowest.isfinite() & highest.isfinite())  # for the tokenizer to refuse
    readable = (are_grey_levels(lowest, highest) | not_finite).tolist()
    for low, high, good in zip(lowest.tolist(), highest.tolist(), readable, strict=True):
        if not good:
            logger.warning_once(
                f"An image holds pixels that would be grey levels from {low:.4g} to {high:.4g}, "
                "expected 0 to 255: patches cannot be chosen on it, and all are kept. Pass uint8 images, or floats "
                "that do_rescale (which assumes 0 to 255) or its absence (which assumes 0 to 1) fits; or turn "
                f"adaptive patches off with patch_selection_method={OFF!r}."
            )
    return readable


class _LastBudgetInfo(threading.local):
    """Per thread, what each image processor's last call did; kept outside the processor so that it is never saved."""

    def __init__(self) -> None:
        self.by_processor: weakref.WeakKeyDictionary[Any, list[dict[str, Any] | None]] = weakref.WeakKeyDictionary()


_last_budget_info = _LastBudgetInfo()


@property  # type: ignore[misc]
def last_budget_info(self: Any) -> list[dict[str, Any] | None] | None:
    """One dictionary per image of this thread's last call of this processor, or `None` before the first.

    Keys: `base_tokens`, `base_small_tokens`, `budget`, `k`, `alpha`, `actual`, as
    `apt_code.PatchTokenizer.last_budget_info`. An entry is `None` where the method was neither `"budget"` nor
    `"joint"`.
    """
    return _last_budget_info.by_processor.get(self)
