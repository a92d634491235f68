"""Qwen2-VL, as vLLM's `qwen2_vl`. Axis legend: `n` patches, `t` language tokens, of all images."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, int32
from vllm.model_executor.models import qwen2_vl as upstream
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_apt.models.tower import MixedSequence
from transformers_apt.serving.modeling import AdaptiveModel
from transformers_apt.serving.processing import AdaptiveProcessor
from transformers_apt.serving.tower import rotary


def mixed_scale_tower(tower: Any, rows: Tensor, sequence: MixedSequence) -> Tensor:
    """vLLM's tower over mixed scales: `rows (n, c·t·p·p)` -> `(t, hidden_size)`."""
    cu_seqlens = F.pad(sequence.lengths.cumsum(0, dtype=int32), (1, 0))
    segments = {
        "cu_seqlens": cu_seqlens.to(tower.device),
        "max_seqlen": tower.compute_attn_mask_seqlen(cu_seqlens),
        **rotary(tower, sequence.centres),
    }
    hidden_states = tower.patch_embed(rows).unsqueeze(1)
    for block in tower.blocks:
        hidden_states = block(hidden_states, **segments)
    return tower.merger(hidden_states[sequence.merger_index])


class Qwen2VLMultiModalProcessor(AdaptiveProcessor, upstream.Qwen2VLMultiModalProcessor):
    """Modifications: those of every family's processor."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLMultiModalProcessor, info=upstream.Qwen2VLProcessingInfo, dummy_inputs=upstream.Qwen2VLDummyInputsBuilder
)
class Qwen2VLForConditionalGeneration(AdaptiveModel, upstream.Qwen2VLForConditionalGeneration):
    """Modifications: those of every family's model."""

    mixed_scale_tower = staticmethod(mixed_scale_tower)
