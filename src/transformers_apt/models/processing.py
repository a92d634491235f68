"""Overlay of the processor classes, as every family needs it."""

from typing import Any

import torch

from apt_code.patch_layout import PatchLayout
from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models.layouts import COUNTS_KEY, LAYOUT_KEY
from transformers_apt.models.preprocessing import keys_of


class Processor(Overlay):
    """Modifications:

    - `replace_image_token`: as many placeholders as the image's tiling has language tokens;
    - `model_input_names` names `image_patch_layout`, `image_patch_counts` and `image_patch_parts`, those of them that
      the last call made; before this thread's first call of the image processor, those that one would.

    The settings come through upstream's own `images_kwargs`. `_get_num_multimodal_tokens` stays upstream's: exact for
    `"off"`, an upper bound for the other methods.

    Class attributes, set on the target:
        reads_patch_layouts: its models do.
        patch_selection_default: the method where nobody asked for one.
    """

    reads_patch_layouts = True
    patch_selection_default = "off"

    @overrides("image_inputs", "image_idx")
    def replace_image_token(upstream: Any, self: Any, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        if LAYOUT_KEY not in image_inputs:
            return upstream(self, image_inputs, image_idx, **kwargs)
        # host arithmetic, wherever the caller's default device put them
        names = (LAYOUT_KEY, "image_grid_thw", COUNTS_KEY)
        mixed = (torch.as_tensor(image_inputs[name]).cpu() for name in names if name in image_inputs)
        return self.image_token * PatchLayout.language_tokens_per_image(*mixed)[image_idx]

    @overrides()
    def model_input_names(upstream: Any, self: Any) -> list[str]:
        names = upstream(self)
        return [*names, *(name for name in keys_of(self) if name not in names)]
