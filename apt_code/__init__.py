"""Adaptive Patch Tokenization: importance maps, selection, layout and packing of mixed-scale patches.

Pure tensors in, tensors out; knows nothing of transformers. Silent unless you call `loguru.logger.enable("apt_code")`.
"""

from loguru import logger

from apt_code.patch_layout import InvalidLayoutError, PatchLayout
from apt_code.patch_tokenizer import PatchTokenizer, TokenizedImages

logger.disable("apt_code")

__all__ = ["InvalidLayoutError", "PatchLayout", "PatchTokenizer", "TokenizedImages"]
