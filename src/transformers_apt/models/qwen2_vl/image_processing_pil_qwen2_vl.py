"""Overlay of `transformers.models.qwen2_vl.image_processing_pil_qwen2_vl` (the PIL backend)."""

from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as upstream_module

from transformers_apt.models.qwen2_vl import selection
from transformers_apt.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers_apt.overlay import Overlay, overrides


class Qwen2VLImageProcessorKwargs(upstream_module.Qwen2VLImageProcessorKwargs, selection.SelectionKwargs, total=False):  # type: ignore[misc]
    """Upstream's arguments and the selection settings."""


class Qwen2VLImageProcessorPil(Overlay):
    """Modifications: the torchvision backend's, over numpy arrays."""

    target = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil"

    valid_kwargs = Qwen2VLImageProcessorKwargs
    patch_selection_method = selection.DEFAULTS["patch_selection_method"]
    alpha = selection.DEFAULTS["alpha"]
    importance_method = selection.DEFAULTS["importance_method"]
    thresholds = selection.DEFAULTS["thresholds"]
    last_budget_info = selection.last_budget_info
    _standardize_kwargs = Qwen2VLImageProcessor._standardize_kwargs
    to_dict = Qwen2VLImageProcessor.to_dict

    @overrides(
        "images", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
        "image_std", "patch_size", "temporal_patch_size", "merge_size", "return_tensors",
    )  # fmt: skip
    def _preprocess(
        upstream: Any,
        self: Any,
        images: list[np.ndarray],
        **kwargs: Any,
    ) -> BatchFeature:
        def normalise(patches: torch.Tensor) -> torch.Tensor:
            # The backend's rescale and normalize take one (c, height, width) image: stack the patches into a column.
            column = patches.transpose(0, 1).flatten(1, 2).numpy()  # (n, c, p, p) -> (c, n·p, p)
            if kwargs["do_rescale"]:
                column = self.rescale(column, kwargs["rescale_factor"])
            if kwargs["do_normalize"]:
                column = self.normalize(column, kwargs["image_mean"], kwargs["image_std"])
            return torch.from_numpy(column).unflatten(1, patches.shape[0::2]).transpose(0, 1)

        def resized() -> list[torch.Tensor]:
            factor = kwargs["patch_size"] * kwargs["merge_size"]
            size, resample = kwargs["size"], kwargs["resample"]
            return [
                torch.from_numpy(
                    np.ascontiguousarray(
                        self.resize(image, size=size, resample=resample, factor=factor)
                        if kwargs["do_resize"]
                        else image
                    )
                )
                for image in images
            ]

        return selection.preprocess(self, upstream, images, kwargs, normalise, resized)
