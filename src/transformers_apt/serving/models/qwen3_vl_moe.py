"""Qwen3-VL, mixture of experts, as vLLM's `qwen3_vl_moe`."""

from vllm.model_executor.models import qwen3_vl_moe as upstream
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_apt.serving.modeling import AdaptiveModel
from transformers_apt.serving.models.qwen3_vl import Qwen3VLMultiModalProcessor, mixed_scale_tower


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=upstream.Qwen3VLMoeProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3VLMoeForConditionalGeneration(AdaptiveModel, upstream.Qwen3VLMoeForConditionalGeneration):
    """Modifications: those of every family's model."""

    mixed_scale_tower = staticmethod(mixed_scale_tower)
