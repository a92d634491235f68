"""Overlay of `transformers.models.qwen3_5_moe.modeling_qwen3_5_moe`: Qwen3.5's tower, under names of its own."""

from transformers_apt.models import modeling
from transformers_apt.models.qwen3_5.modeling_qwen3_5 import mixed_scale_forward
from transformers_apt.models.tower import VisionTower


class Qwen3_5MoeVisionModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe:Qwen3_5MoeVisionModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen3_5MoeModel(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe:Qwen3_5MoeModel"


class Qwen3_5MoeForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe:Qwen3_5MoeForConditionalGeneration"
