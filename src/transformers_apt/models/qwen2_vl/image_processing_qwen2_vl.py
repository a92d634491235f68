"""Overlay of `transformers.models.qwen2_vl.image_processing_qwen2_vl` (the torchvision backend)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.models.qwen2_vl import image_processing_qwen2_vl as upstream_module

from apt_code.patch_packing import Affine
from transformers_apt.models.qwen2_vl import selection
from transformers_apt.overlay import Overlay, overrides


class Qwen2VLImageProcessorKwargs(upstream_module.Qwen2VLImageProcessorKwargs, selection.SelectionKwargs, total=False):  # type: ignore[misc]
    """Upstream's arguments and the selection settings."""


class Qwen2VLImageProcessor(Overlay):
    """Modifications:

    - four settings, as class defaults and `valid_kwargs`: constructor, attribute and call take them;
    - `to_dict`, and so `save_pretrained`, names those that are not the default;
    - `_standardize_kwargs` refuses settings that cannot be used, before any image is read;
    - `_preprocess` selects patches after resizing, and normalises only those that are kept; it returns
      `image_patch_layout` beside `pixel_values`. With `"off"` it is upstream's own.
    - `last_budget_info`, what `budget` or `joint` did to each image of this thread's last call.

    `get_number_of_image_patches` stays upstream's: exact for `"off"`, an upper bound for the other methods.
    """

    target = "transformers.models.qwen2_vl.image_processing_qwen2_vl:Qwen2VLImageProcessor"

    valid_kwargs = Qwen2VLImageProcessorKwargs
    patch_selection_method = selection.DEFAULTS["patch_selection_method"]
    alpha = selection.DEFAULTS["alpha"]
    importance_method = selection.DEFAULTS["importance_method"]
    thresholds = selection.DEFAULTS["thresholds"]
    last_budget_info = selection.last_budget_info

    @overrides()
    def _standardize_kwargs(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        selection.check_selection(**{name: kwargs.get(name) for name in selection.DEFAULTS})
        return upstream(self, *args, **kwargs)

    @overrides()
    def to_dict(upstream: Any, self: Any) -> dict[str, Any]:
        return selection.without_defaults(upstream(self))

    @overrides(
        "images", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
        "image_std", "patch_size", "temporal_patch_size", "merge_size", "disable_grouping", "return_tensors",
    )  # fmt: skip
    def _preprocess(
        upstream: Any,
        self: Any,
        images: list[torch.Tensor],
        **kwargs: Any,
    ) -> BatchFeature:
        def normalise(patches: torch.Tensor) -> torch.Tensor:
            names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
            return self.rescale_and_normalize(patches, *(kwargs[name] for name in names))

        def resized() -> list[torch.Tensor]:
            if not kwargs["do_resize"]:
                return images
            factor = kwargs["patch_size"] * kwargs["merge_size"]
            batches, order = group_images_by_shape(images, disable_grouping=kwargs["disable_grouping"])
            for shape, batch in batches.items():
                batches[shape] = self.resize(
                    images=batch, size=kwargs["size"], resample=kwargs["resample"], factor=factor
                )
            return reorder_images(batches, order)

        return selection.preprocess(self, upstream, images, kwargs, normalise, resized, lambda: _affine(self, kwargs))


def _affine(image_processor: Any, kwargs: Mapping[str, Any]) -> Affine | None:
    """What upstream's normalisation comes to, unless a subclass or an instance has its own."""
    mean, std = kwargs["image_mean"], kwargs["image_std"]
    if not (kwargs["do_rescale"] and kwargs["do_normalize"] and isinstance(mean, (list, tuple))):
        return None
    for name in ("rescale_and_normalize", "_fuse_mean_std_and_rescale_factor", "rescale", "normalize"):
        own = getattr(getattr(image_processor, name), "__func__", None)
        if own is None or own is not getattr(TorchvisionBackend, name):
            return None
    per_level = np.float32(1.0 / kwargs["rescale_factor"])
    return Affine(*(tuple((np.array(values, np.float32) * per_level).tolist()) for values in (mean, std)))
