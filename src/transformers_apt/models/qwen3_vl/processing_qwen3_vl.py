"""Overlay of `transformers.models.qwen3_vl.processing_qwen3_vl`, which Qwen3.5 and the MoE models share."""

from transformers_apt.models.processing import Processor


class Qwen3VLProcessor(Processor):
    """Modifications: those of every family's processor."""

    target = "transformers.models.qwen3_vl.processing_qwen3_vl:Qwen3VLProcessor"
