"""Overlay of `transformers.models.qwen3_vl.modeling_qwen3_vl`: learned positions, and features for early layers.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower.
"""

from typing import Any

from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from transformers_apt.models import modeling
from transformers_apt.models.tower import MixedSequence, VisionTower


@merge_with_config_defaults
@capture_outputs
def mixed_scale_forward(self: Any, hidden_states: Tensor, sequence: MixedSequence, **kwargs: Any) -> Any:
    """Upstream's tower over mixed scales: the table of positions is sampled at each patch's centre, and coarse rows
    are repeated in front of every merger, DeepStack's too.

    `hidden_states (n, c·t·p·p)` -> `last_hidden_state (n, d)`, `pooler_output (t, hidden_size)`,
    `deepstack_features` `(t, hidden_size)` each
    """
    hidden_states = sequence.embed(self, hidden_states)
    hidden_states = hidden_states + sequence.sample_table(self.pos_embed).to(hidden_states.dtype)
    position_embeddings = self.rotary_pos_emb(hidden_states, sequence.centres)
    segments, merger_index = sequence.images(self.config), sequence.merger_index
    features = []
    for number, block in enumerate(self.blocks):
        hidden_states = block(hidden_states, position_embeddings=position_embeddings, **segments, **kwargs)
        if number in self.deepstack_visual_indexes:
            merger = self.deepstack_merger_list[self.deepstack_visual_indexes.index(number)]
            features.append(merger(hidden_states[merger_index]))
    return BaseModelOutputWithDeepstackFeatures(
        last_hidden_state=hidden_states,
        pooler_output=self.merger(hidden_states[merger_index]),
        deepstack_features=features,
    )


class Qwen3VLVisionModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLVisionModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen3VLModel(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLModel"


class Qwen3VLForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLForConditionalGeneration"
