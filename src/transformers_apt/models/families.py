"""The families' names, as a person writes them. Imports nothing: the command asks before transformers is there."""

NAMES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL, mixture of experts",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5, mixture of experts",
}
"""By upstream's folder, which is also the `model_type` of a checkpoint's config."""

SUPPORTED = "Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5"
"""For a sentence."""


def series_of(family: str) -> str:
    """`Qwen3-VL` of the mixture of experts too: what the names of its checkpoints begin with."""
    return NAMES[family].split(",")[0]
