"""Qwen3.5 and its mixture of experts, as vLLM's `qwen3_5`."""

from vllm.model_executor.models import qwen3_5 as upstream
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_apt.serving.modeling import AdaptiveModel
from transformers_apt.serving.models.qwen3_vl import Qwen3VLMultiModalProcessor, mixed_scale_tower


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=upstream.Qwen3_5ProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3_5ForConditionalGeneration(AdaptiveModel, upstream.Qwen3_5ForConditionalGeneration):
    """Modifications: those of every family's model."""

    mixed_scale_tower = staticmethod(mixed_scale_tower)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=upstream.Qwen3_5MoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3_5MoeForConditionalGeneration(AdaptiveModel, upstream.Qwen3_5MoeForConditionalGeneration):
    """Modifications: those of every family's model."""

    mixed_scale_tower = staticmethod(mixed_scale_tower)
