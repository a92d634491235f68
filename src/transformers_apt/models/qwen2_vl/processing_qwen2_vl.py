"""Overlay of `transformers.models.qwen2_vl.processing_qwen2_vl`."""

from typing import Any

import torch

from apt_code.patch_layout import PatchLayout
from transformers_apt.models.preprocessing import LAYOUT_KEY, makes_layouts
from transformers_apt.overlay import Overlay, overrides


class Qwen2VLProcessor(Overlay):
    """Modifications:

    - `replace_image_token`: as many placeholders as the image's tiling has language tokens;
    - `model_input_names` names `image_patch_layout` after a call that made layouts; before this thread's first call of
      the image processor, where one would.

    The settings come through upstream's own `images_kwargs`. `_get_num_multimodal_tokens` stays upstream's: exact for
    `"off"`, an upper bound for the other methods.
    """

    target = "transformers.models.qwen2_vl.processing_qwen2_vl:Qwen2VLProcessor"

    @overrides("image_inputs", "image_idx")
    def replace_image_token(upstream: Any, self: Any, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        if LAYOUT_KEY not in image_inputs:
            return upstream(self, image_inputs, image_idx, **kwargs)
        # host arithmetic, wherever the caller's default device put them
        layout, grids = (torch.as_tensor(image_inputs[name]).cpu() for name in (LAYOUT_KEY, "image_grid_thw"))
        return self.image_token * PatchLayout.language_tokens_per_image(layout, grids)[image_idx]

    @overrides()
    def model_input_names(upstream: Any, self: Any) -> list[str]:
        names = upstream(self)
        return [*names, LAYOUT_KEY] if LAYOUT_KEY not in names and makes_layouts(self) else names
