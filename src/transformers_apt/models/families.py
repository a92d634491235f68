"""Names as a person writes them, of families and of checkpoints.

Imports nothing heavy: the command asks before transformers is there.
"""

import os

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


def no_such_checkpoint(model: str) -> str | None:
    """What to say of a path to a checkpoint that leads nowhere; `None` of one that does not, and of a hub id."""
    if not model.startswith((".", "/", "~")) or os.path.isdir(os.path.expanduser(model)):
        return None
    return f"{model} is not a folder; expected a checkpoint folder or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
