"""Overlay of `transformers.models.qwen2_vl.processing_qwen2_vl`."""

from transformers_apt.models.processing import Processor
from transformers_apt.models.settings import DEFAULTS


class Qwen2VLProcessor(Processor):
    """Modifications: those of every family's processor; where nobody asked for a method, `"v1"` selects."""

    target = "transformers.models.qwen2_vl.processing_qwen2_vl:Qwen2VLProcessor"
    patch_selection_default = DEFAULTS["patch_selection_method"]
