"""Overlay of `transformers.models.qwen2_vl.image_processing_qwen2_vl` (the torchvision backend)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images

from apt_code.patch_packing import Affine
from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import preprocessing, reach, settings


class Qwen2VLImageProcessor(Overlay):
    """Modifications:

    - four settings, as class attributes; the constructor and `from_pretrained` set them, upstream's `to_dict` saves
      those that somebody set. `valid_kwargs` stays upstream's;
    - `__call__` and `preprocess` take them, and hand them past upstream's check of arguments;
    - `_preprocess` selects patches after resizing, and normalises only those that are kept; it returns
      `image_patch_layout` beside `pixel_values`. With `"off"` it is upstream's own.
    - `last_budget_info`, what `budget` or `joint` did to each image of this thread's last call.

    `get_number_of_image_patches` stays upstream's: exact for `"off"`, an upper bound for the other methods.
    """

    target = "transformers.models.qwen2_vl.image_processing_qwen2_vl:Qwen2VLImageProcessor"

    patch_selection_method = settings.DEFAULTS["patch_selection_method"]
    alpha = settings.DEFAULTS["alpha"]
    importance_method = settings.DEFAULTS["importance_method"]
    thresholds = settings.DEFAULTS["thresholds"]
    last_budget_info = preprocessing.last_budget_info

    @overrides()
    def __init__(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        settings.check_selection(**{name: kwargs.get(name) for name in settings.names_of(self)})
        upstream(self, *args, **kwargs)

    @overrides("image_processor_dict")
    def from_dict(upstream: Any, cls: Any, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        made = upstream({**image_processor_dict, **settings.take(cls, kwargs)}, **kwargs)
        reach.mark_family(made[0] if isinstance(made, tuple) else made, image_processor_dict.get("processor_class"))
        return made

    @overrides()
    def __call__(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        call = reach.current_call(self).naming(settings.take(self, kwargs))
        with reach.calling(call):
            output = upstream(self, *args, **kwargs)
        preprocessing.refuse_ignored(call, output)
        return output

    @overrides()
    def preprocess(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        with reach.calling(reach.current_call(self).naming(settings.take(self, kwargs))):
            return upstream(self, *args, **kwargs)

    @overrides(
        "images", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
        "image_std", "patch_size", "temporal_patch_size", "merge_size", "disable_grouping", "return_tensors",
    )  # fmt: skip
    def _preprocess(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        given = preprocessing.named_arguments(upstream, self, args, kwargs)

        def normalise(patches: torch.Tensor) -> torch.Tensor:
            names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
            return self.rescale_and_normalize(patches, *(given[name] for name in names))

        def resized() -> list[torch.Tensor]:
            if not given["do_resize"]:
                return given["images"]
            factor = given["patch_size"] * given["merge_size"]
            batches, order = group_images_by_shape(given["images"], disable_grouping=given["disable_grouping"])
            for shape, batch in batches.items():
                batches[shape] = self.resize(
                    images=batch, size=given["size"], resample=given["resample"], factor=factor
                )
            return reorder_images(batches, order)

        return preprocessing.preprocess(self, upstream, given, normalise, resized, lambda: _affine(self, given))


def _affine(image_processor: Any, given: Mapping[str, Any]) -> Affine | None:
    """What upstream's normalisation comes to, unless a subclass or an instance has its own."""
    mean, std = given["image_mean"], given["image_std"]
    if not (given["do_rescale"] and given["do_normalize"] and isinstance(mean, (list, tuple))):
        return None
    for name in ("rescale_and_normalize", "_fuse_mean_std_and_rescale_factor", "rescale", "normalize"):
        own = getattr(getattr(image_processor, name), "__func__", None)
        if own is None or own is not getattr(TorchvisionBackend, name):
            return None
    per_level = np.float32(1.0 / given["rescale_factor"])
    return Affine(*(tuple((np.array(values, np.float32) * per_level).tolist()) for values in (mean, std)))
