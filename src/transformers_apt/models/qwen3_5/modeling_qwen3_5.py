"""Overlay of `transformers.models.qwen3_5.modeling_qwen3_5`: Qwen3-VL's tower without DeepStack, a hybrid text model.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower.
"""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from transformers_apt.models import modeling
from transformers_apt.models.tower import MixedSequence, VisionTower


@merge_with_config_defaults
@capture_outputs
def mixed_scale_forward(
    self: Any, hidden_states: Tensor, sequence: MixedSequence, **kwargs: Any
) -> BaseModelOutputWithPooling:
    """Upstream's tower over mixed scales, with the table of positions sampled at each patch's centre.

    `hidden_states (n, c·t·p·p)` -> `last_hidden_state (n, d)`, `pooler_output (t, hidden_size)`
    """
    hidden_states = sequence.embed(self, hidden_states)
    hidden_states = hidden_states + sequence.sample_table(self.pos_embed).to(hidden_states.dtype)
    position_embeddings = self.rotary_pos_emb(hidden_states, sequence.centres)
    segments = sequence.images(self.config)
    for block in self.blocks:
        hidden_states = block(hidden_states, position_embeddings=position_embeddings, **segments, **kwargs)
    merged = self.merger(hidden_states[sequence.merger_index])
    return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=merged)


class Qwen3_5VisionModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen3_5.modeling_qwen3_5:Qwen3_5VisionModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen3_5Model(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen3_5.modeling_qwen3_5:Qwen3_5Model"


class Qwen3_5ForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen3_5.modeling_qwen3_5:Qwen3_5ForConditionalGeneration"
