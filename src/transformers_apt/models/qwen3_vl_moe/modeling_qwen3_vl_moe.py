"""Overlay of `transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe`: Qwen3-VL's tower, under names of its own."""

from transformers_apt.models import modeling
from transformers_apt.models.qwen3_vl.modeling_qwen3_vl import mixed_scale_forward
from transformers_apt.models.tower import VisionTower


class Qwen3VLMoeVisionModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe:Qwen3VLMoeVisionModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen3VLMoeModel(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe:Qwen3VLMoeModel"


class Qwen3VLMoeForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe:Qwen3VLMoeForConditionalGeneration"
