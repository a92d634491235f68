"""What an image costs Qwen2-VL in floating-point operations: an estimate from token counts and shapes.

Only matrix products are counted, a multiplication and an addition as two operations. Norms, activations and rotary
embeddings are below a percent; memory traffic and launch overheads, which a clock sees, are not in it. So it is a
bound on what fewer tokens can save, not a speed-up.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2-VL model.

    Attributes:
        hidden_size, intermediate_size, layers, heads, kv_heads, vocab_size: of the language model.
        tower_width, tower_depth: of the vision tower, whose MLP is four times as wide.
        patch_values: numbers in a row of `pixel_values`: 3 colours, 2 frames, 14×14 pixels.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    tower_width: int = 1280
    tower_depth: int = 32
    patch_values: int = 1176


QWEN2_VL: dict[str, Shape] = {
    "2b": Shape(hidden_size=1536, intermediate_size=8960, layers=28, heads=12, kv_heads=2, vocab_size=151936),
    "7b": Shape(hidden_size=3584, intermediate_size=18944, layers=28, heads=28, kv_heads=4, vocab_size=152064),
}
"""The published checkpoints' shapes; the tower is the same 675M parameters in both."""


def tower_flops(patches: int, tokens: int, shape: Shape) -> float:
    """The vision tower on one image: `patches` rows in, `tokens` language tokens out.

    Per block `24·n·d²` for the linear layers and `4·n²·d` for attention, which is over the whole image; then the
    patch embedding, and the merger, which reads four rows of width `d` per token.
    """
    width = shape.tower_width
    block = 24 * patches * width**2 + 4 * patches**2 * width
    merger = 2 * tokens * ((4 * width) ** 2 + 4 * width * shape.hidden_size)
    return shape.tower_depth * block + 2 * patches * shape.patch_values * width + merger


def prefill_flops(tokens: int, shape: Shape) -> float:
    """The language model up to the first answer token, on a prompt of `tokens` tokens, those of images included.

    Per layer the projections of grouped-query attention, attention over the earlier tokens (half of the square, as
    causal kernels compute it) and the three matrices of the gated MLP; then the logits of the last position.
    """
    width, keys = shape.hidden_size, shape.kv_heads * (shape.hidden_size // shape.heads)
    linear = 4 * width**2 + 4 * width * keys + 6 * width * shape.intermediate_size
    attention = 2 * tokens**2 * width
    return shape.layers * (tokens * linear + attention) + 2 * width * shape.vocab_size
