"""Names as a person writes them, of families and of checkpoints.

Imports nothing heavy: the command asks before transformers is there.
"""

import os
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Published:
    """What the `preprocessor_config.json` of a family's released checkpoints says of an image's size.

    Attributes:
        patch_size: side of the finest patch, in pixels.
        min_pixels, max_pixels: an image is resized to an area between them.
    """

    patch_size: int
    min_pixels: int
    max_pixels: int


_FIRST = Published(14, 4 * 28**2, 16384 * 28**2)  # Qwen2-VL-2B, -7B and -72B; Qwen2.5-VL-3B, -7B and -72B
_LATER = Published(16, 64 * 32**2, 16384 * 32**2)  # Qwen3-VL-2B to -235B-A22B; Qwen3.5-2B and later

PUBLISHED: dict[str, Published] = {
    "qwen2_vl": _FIRST,
    "qwen2_5_vl": _FIRST,
    "qwen3_vl": _LATER,
    "qwen3_vl_moe": _LATER,
    "qwen3_5": _LATER,
    "qwen3_5_moe": _LATER,
}
"""By family. Upstream's class, made without a checkpoint, allows 1280 · 28² pixels, a twelfth of it."""


def megapixels(pixels: int) -> str:
    """`12.8 megapixels`: an area for a sentence."""
    return f"{pixels / 1e6:.1f} megapixels"


def no_such_family(family: str) -> str | None:
    """What to say of a family's name that is none; `None` of one that is."""
    return None if family in NAMES else f"{family!r} is no family; expected one of {', '.join(NAMES)}"


def series_of(family: str) -> str:
    """`Qwen3-VL` of the mixture of experts too: what the names of its checkpoints begin with."""
    return NAMES[family].split(",")[0]


def no_such_checkpoint(model: str) -> str | None:
    """What to say of a path to a checkpoint that leads nowhere; `None` of one that does not, and of a hub id."""
    if not model.startswith((".", "/", "~")) or os.path.isdir(os.path.expanduser(model)):
        return None
    return f"{model} is not a folder; expected a checkpoint folder or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
