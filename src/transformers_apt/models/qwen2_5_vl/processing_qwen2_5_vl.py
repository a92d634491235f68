"""Overlay of `transformers.models.qwen2_5_vl.processing_qwen2_5_vl`."""

from transformers_apt.models.processing import Processor


class Qwen2_5_VLProcessor(Processor):
    """Modifications: those of every family's processor."""

    target = "transformers.models.qwen2_5_vl.processing_qwen2_5_vl:Qwen2_5_VLProcessor"
