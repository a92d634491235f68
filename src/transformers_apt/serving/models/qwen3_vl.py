"""Qwen3-VL, as vLLM's `qwen3_vl`. Axis legend: `n` patches, `t` language tokens, of all images."""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen3_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_apt.models.tower import MixedSequence
from transformers_apt.serving.modeling import AdaptiveModel
from transformers_apt.serving.processing import AdaptiveProcessor
from transformers_apt.serving.tower import rotary, segments


def mixed_scale_tower(tower: Any, rows: Tensor, sequence: MixedSequence) -> Tensor:
    """vLLM's tower over mixed scales: `rows (n, c·t·p·p)` -> `(t, hidden_size · (1 + DeepStack's levels))`.

    Serves Qwen3.5's tower too, which has no DeepStack.
    """
    arguments = {**rotary(tower, sequence.centres), **segments(tower, sequence.lengths)}
    hidden_states = tower.patch_embed(rows)
    hidden_states = hidden_states + sequence.sample_table(tower.pos_embed).to(hidden_states.dtype)
    hidden_states = hidden_states.unsqueeze(1)
    merger_index, features = sequence.merger_index, []
    for number, block in enumerate(tower.blocks):
        hidden_states = block(hidden_states, **arguments)
        if number in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(number)]
            features.append(merger(hidden_states[merger_index]))
    return torch.cat([tower.merger(hidden_states[merger_index]), *features], dim=1)


class Qwen3VLMultiModalProcessor(AdaptiveProcessor, upstream.Qwen3VLMultiModalProcessor):
    """Modifications: those of every family's processor."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=upstream.Qwen3VLProcessingInfo, dummy_inputs=upstream.Qwen3VLDummyInputsBuilder
)
class Qwen3VLForConditionalGeneration(AdaptiveModel, upstream.Qwen3VLForConditionalGeneration):
    """Modifications: those of every family's model."""

    mixed_scale_tower = staticmethod(mixed_scale_tower)
