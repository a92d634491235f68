"""Overlay of `transformers.models.qwen2_vl.image_processing_pil_qwen2_vl` (the PIL backend)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature

from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import preprocessing
from transformers_apt.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor


class Qwen2VLImageProcessorPil(Overlay):
    """Modifications: the torchvision backend's, over numpy arrays."""

    target = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil"

    patch_selection_method = Qwen2VLImageProcessor.patch_selection_method
    alpha = Qwen2VLImageProcessor.alpha
    importance_method = Qwen2VLImageProcessor.importance_method
    thresholds = Qwen2VLImageProcessor.thresholds
    drop_tolerance = Qwen2VLImageProcessor.drop_tolerance
    predict_tolerance = Qwen2VLImageProcessor.predict_tolerance
    max_language_tokens = Qwen2VLImageProcessor.max_language_tokens
    patch_parts = Qwen2VLImageProcessor.patch_parts
    last_budget_info = Qwen2VLImageProcessor.last_budget_info
    __init__ = Qwen2VLImageProcessor.__init__
    from_pretrained = Qwen2VLImageProcessor.from_pretrained
    from_dict = Qwen2VLImageProcessor.from_dict
    __getstate__ = Qwen2VLImageProcessor.__getstate__
    __setstate__ = Qwen2VLImageProcessor.__setstate__
    __call__ = Qwen2VLImageProcessor.__call__
    preprocess = Qwen2VLImageProcessor.preprocess

    @overrides(
        "images", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
        "image_std", "patch_size", "temporal_patch_size", "merge_size", "return_tensors",
    )  # fmt: skip
    def _preprocess(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        given = preprocessing.named_arguments(upstream, self, args, kwargs)

        def normalise(patches: torch.Tensor) -> torch.Tensor:
            # The backend's rescale and normalize take one (c, height, width) image: stack the patches into a column.
            column = patches.transpose(0, 1).flatten(1, 2).numpy()  # (n, c, p, p) -> (c, n·p, p)
            if given["do_rescale"]:
                column = self.rescale(column, given["rescale_factor"])
            if given["do_normalize"]:
                column = self.normalize(column, given["image_mean"], given["image_std"])
            return torch.from_numpy(column).unflatten(1, patches.shape[0::2]).transpose(0, 1)

        def resize(images: Sequence[np.ndarray], size: Any) -> list[torch.Tensor]:
            factor = given["patch_size"] * given["merge_size"]
            return [
                torch.from_numpy(
                    np.ascontiguousarray(
                        self.resize(image, size=size, resample=given["resample"], factor=factor)
                        if size is not None
                        else image
                    )
                )
                for image in images
            ]

        return preprocessing.preprocess(self, upstream, given, normalise, resize)
