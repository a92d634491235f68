"""Overlay of `transformers.models.qwen2_5_vl.modeling_qwen2_5_vl`: most of the tower's blocks attend within windows.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from apt_code.patch_layout import PatchLayout
from transformers_apt.models import modeling
from transformers_apt.models.settings import NUM_SCALES
from transformers_apt.models.tower import MixedSequence, VisionTower

LARGEST = 2 ** (NUM_SCALES - 1)
"""The side of the largest patch, in base cells."""


def windows_of(layouts: list[PatchLayout], side: int) -> tuple[Tensor, Tensor]:
    """The order in which the patches stand window by window, and how many each window has.

    A window is `side × side` base cells. The largest patch's side divides it, so no patch straddles two. A patch
    stands in its image's, in raster order of the windows; within one, patches keep their canonical order.

    Returns:
        `order (n,)` int64 indices of patches, and `lengths (windows that have a patch,)` int32.

    Raises:
        ValueError: windows that the largest patch does not divide.
    """
    if side % LARGEST:
        raise ValueError(
            f"windows of {side}×{side} patches: expected a multiple of {LARGEST}, the largest patch's side, as "
            "in the released checkpoints; preprocess with patch_selection_method='off'"
        )
    keys, first = [], 0
    for layout in layouts:
        rows, cols = (-(-cells // side) for cells in layout.grid)
        keys.append(first + layout.rows // side * cols + layout.cols // side)
        first += rows * cols
    window = torch.cat(keys)
    lengths = torch.bincount(window, minlength=first)
    return window.argsort(stable=True), lengths[lengths > 0].int()


@merge_with_config_defaults
@capture_outputs
def mixed_scale_forward(
    self: Any, hidden_states: Tensor, sequence: MixedSequence, **kwargs: Any
) -> BaseModelOutputWithPooling:
    """Upstream's tower over mixed scales; like it, it works in the order of the windows.

    `hidden_states (n, c·t·p·p)` -> `last_hidden_state (n, d)`, `pooler_output (t, hidden_size)`
    """
    order, lengths = windows_of(sequence.layouts, self.window_size // self.patch_size)
    place, order = order.argsort().to(sequence.device), order.to(sequence.device)
    hidden_states = sequence.embed(self, hidden_states)[order]
    position_embeddings = self.rotary_pos_emb(hidden_states, sequence.centres[order])
    windows, images = sequence.segments(lengths, self.config), sequence.images(self.config)
    for number, block in enumerate(self.blocks):
        segments = images if number in self.fullatt_block_indexes else windows
        hidden_states = block(hidden_states, position_embeddings=position_embeddings, **segments, **kwargs)
    merged = self.merger(hidden_states[place[sequence.merger_index]])
    return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=merged)


class Qwen2_5_VisionTransformerPretrainedModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VisionTransformerPretrainedModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen2_5_VLModel(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLModel"


class Qwen2_5_VLForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLForConditionalGeneration"
