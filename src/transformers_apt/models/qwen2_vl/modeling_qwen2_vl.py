"""Overlay of `transformers.models.qwen2_vl.modeling_qwen2_vl`: the tower and M-RoPE read mixed-scale patches.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower.
"""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from transformers_apt.models import modeling
from transformers_apt.models.tower import MixedSequence, VisionTower


@merge_with_config_defaults
@capture_outputs
def mixed_scale_forward(
    self: Any, hidden_states: torch.Tensor, sequence: MixedSequence, **kwargs: Any
) -> BaseModelOutputWithPooling:
    """Upstream's tower, with each patch at its own centre and coarse rows repeated in front of the merger.

    `hidden_states (n, c·t·p·p)` -> `last_hidden_state (n, d)`, `pooler_output (t, hidden_size)`
    """
    hidden_states = sequence.embed(self, hidden_states)
    position_embeddings = self.rotary_pos_emb(hidden_states, sequence.centres)
    segments = sequence.images(self.config)
    for block in self.blocks:
        hidden_states = block(hidden_states, position_embeddings=position_embeddings, **segments, **kwargs)
    merged = self.merger(hidden_states[sequence.merger_index])
    return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=merged)


class Qwen2VisionTransformerPretrainedModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VisionTransformerPretrainedModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen2VLModel(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VLModel"


class Qwen2VLForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VLForConditionalGeneration"
