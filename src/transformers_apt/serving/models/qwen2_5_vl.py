"""Qwen2.5-VL, as vLLM's `qwen2_5_vl`. Axis legend: `n` patches, `t` language tokens, of all images."""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl as upstream
from vllm.model_executor.models.utils import cast_overflow_tensors
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_apt.models.qwen2_5_vl.modeling_qwen2_5_vl import windows_of
from transformers_apt.models.tower import MixedSequence
from transformers_apt.serving.modeling import AdaptiveModel
from transformers_apt.serving.processing import AdaptiveProcessor
from transformers_apt.serving.tower import rotary, segments


def mixed_scale_tower(tower: Any, rows: Tensor, sequence: MixedSequence) -> Tensor:
    """vLLM's tower over mixed scales, in the order of the windows: `rows (n, c·t·p·p)` -> `(t, hidden_size)`."""
    order, lengths = windows_of(sequence.layouts, tower.window_size // tower.patch_size)
    place, order = order.argsort().to(tower.device), order.to(tower.device)
    places = rotary(tower, sequence.centres[order])
    windows, images = segments(tower, lengths), segments(tower, sequence.lengths)
    hidden_states = tower.patch_embed(rows)[order].unsqueeze(1)
    for number, block in enumerate(tower.blocks):
        arguments = images if number in tower.fullatt_block_indexes else windows
        hidden_states = block(hidden_states, **places, **arguments)
    if hidden_states.dtype == torch.float16:  # as vLLM's: the last block of the 3B model can leave its range
        hidden_states = cast_overflow_tensors(hidden_states)
    return tower.merger(hidden_states[place[sequence.merger_index]])


class Qwen2_5_VLMultiModalProcessor(AdaptiveProcessor, upstream.Qwen2_5_VLMultiModalProcessor):
    """Modifications: those of every family's processor."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor,
    info=upstream.Qwen2_5_VLProcessingInfo,
    dummy_inputs=upstream.Qwen2_5_VLDummyInputsBuilder,
)
class Qwen2_5_VLForConditionalGeneration(AdaptiveModel, upstream.Qwen2_5_VLForConditionalGeneration):
    """Modifications: those of every family's model."""

    mixed_scale_tower = staticmethod(mixed_scale_tower)
