"""Overlay of `transformers.models.qwen2_vl.image_processing_qwen2_vl` (the torchvision backend)."""

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images

from apt_code.patch_packing import Affine
from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import preprocessing, reach, settings
from transformers_apt.models.checkpoints import processor_class_of


class Qwen2VLImageProcessor(Overlay):
    """Modifications:

    - seven settings, as class attributes; the constructor and `from_pretrained` set them, upstream's `to_dict` saves
      those that somebody set. `valid_kwargs` stays upstream's;
    - `from_pretrained`, `from_dict`, `__getstate__` and `__setstate__` (a copy, or one that was pickled) keep note of
      the processor that it belongs to;
    - `__call__` and `preprocess` take them, and hand them past upstream's check of arguments;
    - `_preprocess` selects patches after resizing, and normalises only those that are kept; it returns
      `image_patch_layout` and `image_patch_counts` beside `pixel_values`, and where `patch_parts` asks for it
      `image_patch_parts`. With `"off"` it is upstream's own.
    - `last_budget_info`, what `budget`, `joint` or `fit` did to each image of this thread's last call.

    `get_number_of_image_patches` stays upstream's: exact for `"off"`, an upper bound for the other methods.
    """

    target = "transformers.models.qwen2_vl.image_processing_qwen2_vl:Qwen2VLImageProcessor"

    patch_selection_method = settings.DEFAULTS["patch_selection_method"]
    alpha = settings.DEFAULTS["alpha"]
    importance_method = settings.DEFAULTS["importance_method"]
    thresholds = settings.DEFAULTS["thresholds"]
    drop_tolerance = settings.DEFAULTS["drop_tolerance"]
    predict_tolerance = settings.DEFAULTS["predict_tolerance"]
    max_language_tokens = settings.DEFAULTS["max_language_tokens"]
    patch_parts = settings.DEFAULTS["patch_parts"]
    last_budget_info = preprocessing.last_budget_info

    @overrides()
    def __init__(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        settings.check_selection(**{name: kwargs.get(name) for name in settings.names_of(self, kwargs)})
        upstream(self, *args, **kwargs)

    @overrides("pretrained_model_name_or_path")
    def from_pretrained(upstream: Any, cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        made = upstream(pretrained_model_name_or_path, *args, **kwargs)
        named = inspect.signature(upstream).bind(pretrained_model_name_or_path, *args).arguments
        reach.mark_family(_first(made), processor_class_of(pretrained_model_name_or_path, {**named, **kwargs}))
        return made

    @overrides("image_processor_dict")
    def from_dict(upstream: Any, cls: Any, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        given = settings.take(kwargs, settings.names_of(cls, {**image_processor_dict, **kwargs}))
        saved = {name: value for name, value in image_processor_dict.items() if name != reach.OWNER}
        made = upstream({**saved, **given}, **kwargs)
        reach.mark_family(_first(made), image_processor_dict.get("processor_class"))
        return made

    @overrides()
    def __getstate__(upstream: Any, self: Any) -> Any:
        return reach.with_owner(self, upstream(self))

    __setstate__ = reach.restore_with_owner

    @overrides()
    def __call__(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return preprocessing.call(upstream, self, args, kwargs)

    @overrides()
    def preprocess(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return preprocessing.call(upstream, self, args, kwargs)

    @overrides(
        "images", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
        "image_std", "patch_size", "temporal_patch_size", "merge_size", "disable_grouping", "return_tensors",
    )  # fmt: skip
    def _preprocess(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        given = preprocessing.named_arguments(upstream, self, args, kwargs)

        def normalise(patches: torch.Tensor) -> torch.Tensor:
            names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
            return self.rescale_and_normalize(patches, *(given[name] for name in names))

        def resize(images: Sequence[torch.Tensor], size: Any) -> list[torch.Tensor]:
            if size is None:
                return list(images)
            factor = given["patch_size"] * given["merge_size"]
            how = {"size": size, "resample": given["resample"], "factor": factor}
            if len(images) == 1:  # finding groups would take as long as a small image's resizing
                return list(self.resize(images=images[0].unsqueeze(0), **how))
            batches, order = group_images_by_shape(images, disable_grouping=given["disable_grouping"])
            return reorder_images({shape: self.resize(images=batch, **how) for shape, batch in batches.items()}, order)

        return preprocessing.preprocess(self, upstream, given, normalise, resize, lambda: _affine(self, given))


def _first(made: Any) -> Any:
    """An image processor, of what `return_unused_kwargs` makes a tuple."""
    return made[0] if isinstance(made, tuple) else made


def _affine(image_processor: Any, given: Mapping[str, Any]) -> Affine | None:
    """What upstream's normalisation comes to, unless a subclass or an instance has its own."""
    mean, std = given["image_mean"], given["image_std"]
    if not (given["do_rescale"] and given["do_normalize"] and isinstance(mean, (list, tuple))):
        return None
    for name in ("rescale_and_normalize", "_fuse_mean_std_and_rescale_factor", "rescale", "normalize"):
        own = getattr(getattr(image_processor, name), "__func__", None)
        if own is None or own is not getattr(TorchvisionBackend, name):
            return None
    return _affine_of(tuple(mean), tuple(std), given["rescale_factor"])


@lru_cache(maxsize=16)
def _affine_of(mean: tuple[float, ...], std: tuple[float, ...], rescale_factor: float) -> Affine:
    """In the unit of a grey level."""
    per_level = np.float32(1.0 / rescale_factor)
    return Affine(*(tuple((np.array(values, np.float32) * per_level).tolist()) for values in (mean, std)))
