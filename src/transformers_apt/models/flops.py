"""What an image costs a Qwen-VL model in floating-point operations: an estimate from token counts and shapes.

Only matrix products and convolutions are counted, a multiplication and an addition as two operations. Norms,
activations, rotary embeddings and the small triangular systems of linear attention are below a percent; memory
traffic and launch overheads, which a clock sees, are not in it. So it is a bound on what fewer tokens can save, not a
speed-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from apt_code.patch_layout import PatchLayout
from transformers_apt.models.branch import CONFIG_KEY

CHUNK = 64
"""Tokens that upstream's linear attention takes at once."""


@dataclass(frozen=True)
class Tower:
    """The sizes of a vision tower.

    Attributes:
        width, depth, mlp: of its blocks.
        gated: the MLP has three matrices instead of two.
        patch_values: numbers in a row of `pixel_values`: 3 colours, 2 frames, the pixels of a patch.
        window: side in base cells of the windows in which blocks attend; `None` where all attend to the whole image.
        full_blocks: those that attend to the whole image all the same.
        mergers: one, and one more for every layer of the language model that DeepStack feeds.
        branch: it has the branch of `models/branch.py`, which reads coarse patches at full resolution.
    """

    width: int = 1280
    depth: int = 32
    mlp: int = 5120
    gated: bool = False
    patch_values: int = 3 * 2 * 14**2
    window: int | None = None
    full_blocks: int = 0
    mergers: int = 1
    branch: bool = False


@dataclass(frozen=True)
class Experts:
    """The MLPs of a mixture of experts, in every layer.

    Attributes:
        count, active: in a layer, and of them for each token.
        width: of each.
        shared: width of the one that every token goes through; 0 where there is none.
    """

    count: int
    active: int
    width: int
    shared: int = 0


@dataclass(frozen=True)
class LinearAttention:
    """The layers with a gated delta rule instead of attention.

    Attributes:
        layers: how many.
        key_heads, value_heads, key_dim, value_dim: heads, and the width of each.
        kernel: tokens that the convolution in front sees.
    """

    layers: int
    key_heads: int = 16
    value_heads: int = 32
    key_dim: int = 128
    value_dim: int = 128
    kernel: int = 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        hidden_size, intermediate_size, layers, heads, kv_heads, vocab_size: of the language model.
        head_dim: where it is not `hidden_size / heads`.
        gated: attention has an output gate, as wide as the queries.
        linear: the layers that have linear attention instead.
        experts: what stands in each layer instead of an MLP `intermediate_size` wide.
        tower: the vision tower.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    head_dim: int | None = None
    gated: bool = False
    linear: LinearAttention | None = None
    experts: Experts | None = None
    tower: Tower = Tower()


# -------------------------------------------------------------------- published checkpoints

# Qwen2.5-VL: config.json of Qwen/Qwen2.5-VL-7B-Instruct-AWQ and of checkpoints tuned from the 3B; what vision_config
# leaves out (depth, MLP, windows, full attention in blocks 7, 15, 23 and 31) from upstream's Qwen2_5_VLVisionConfig.
_TOWER_2_5 = Tower(mlp=3420, gated=True, window=8, full_blocks=4)

# Qwen3-VL: copies of the 4B's config.json, and config.json of checkpoints tuned from the 8B and the 30B-A3B; those two
# and the 2B as pytorch/torchtitan, which loads them, has them in torchtitan/models/qwen3_vl.
_PIXELS_16 = 3 * 2 * 16**2
_TOWER_3_SMALL = Tower(width=1024, depth=24, mlp=4096, patch_values=_PIXELS_16, mergers=4)
_TOWER_3 = Tower(width=1152, depth=27, mlp=4304, patch_values=_PIXELS_16, mergers=4)

# Qwen3.5: the 9B and the 35B-A3B are upstream's defaults of Qwen3_5Config and Qwen3_5MoeConfig. The 27B is Qwen3.8-27B
# too: its dimensions are those that quantised copies' model cards and public loaders quote from its config.json.
_TOWER_3_5 = Tower(width=1152, depth=27, mlp=4304, patch_values=_PIXELS_16)

PUBLISHED: dict[str, dict[str, Shape]] = {
    # the tower is the same 675M parameters in both
    "qwen2_vl": {
        "2b": Shape(1536, 8960, layers=28, heads=12, kv_heads=2, vocab_size=151936),
        "7b": Shape(3584, 18944, layers=28, heads=28, kv_heads=4, vocab_size=152064),
    },
    "qwen2_5_vl": {
        "3b": Shape(2048, 11008, layers=36, heads=16, kv_heads=2, vocab_size=151936, tower=_TOWER_2_5),
        "7b": Shape(3584, 18944, layers=28, heads=28, kv_heads=4, vocab_size=152064, tower=_TOWER_2_5),
    },
    "qwen3_vl": {
        "2b": Shape(2048, 6144, 28, heads=16, kv_heads=8, vocab_size=151936, head_dim=128, tower=_TOWER_3_SMALL),
        "4b": Shape(2560, 9728, 36, heads=32, kv_heads=8, vocab_size=151936, head_dim=128, tower=_TOWER_3_SMALL),
        "8b": Shape(4096, 12288, 36, heads=32, kv_heads=8, vocab_size=151936, head_dim=128, tower=_TOWER_3),
    },
    "qwen3_vl_moe": {
        "30b-a3b": Shape(
            2048, 0, 48, heads=32, kv_heads=4, vocab_size=151936, head_dim=128,
            experts=Experts(count=128, active=8, width=768), tower=_TOWER_3,
        ),
    },
    "qwen3_5": {
        "9b": Shape(
            4096, 12288, 32, heads=16, kv_heads=4, vocab_size=248320, head_dim=256, gated=True,
            linear=LinearAttention(layers=24), tower=_TOWER_3_5,
        ),
        "27b": Shape(
            5120, 17408, 64, heads=24, kv_heads=4, vocab_size=248320, head_dim=256, gated=True,
            linear=LinearAttention(layers=48, value_heads=48), tower=_TOWER_3_5,
        ),
    },
    "qwen3_5_moe": {
        "35b-a3b": Shape(
            2048, 0, 40, heads=16, kv_heads=2, vocab_size=248320, head_dim=256, gated=True,
            linear=LinearAttention(layers=30), experts=Experts(count=256, active=8, width=512, shared=512),
            tower=_TOWER_3_5,
        ),
    },
}  # fmt: skip
"""By family and size. What could not be looked up is left out."""

QWEN2_VL = PUBLISHED["qwen2_vl"]


def shape_of(config: Any) -> Shape:
    """The sizes of a checkpoint, from its config; of any of the families."""
    text = config.text_config
    kinds = list(getattr(text, "layer_types", None) or [])
    count = getattr(text, "num_experts", None)
    later = config.model_type.startswith("qwen3_5")
    experts = linear = None
    if count:
        shared = text.shared_expert_intermediate_size if later else 0
        experts = Experts(count, text.num_experts_per_tok, text.moe_intermediate_size, shared)
    if "linear_attention" in kinds:
        linear = LinearAttention(
            layers=kinds.count("linear_attention"),
            key_heads=text.linear_num_key_heads,
            value_heads=text.linear_num_value_heads,
            key_dim=text.linear_key_head_dim,
            value_dim=text.linear_value_head_dim,
            kernel=text.linear_conv_kernel_dim,
        )
    return Shape(
        hidden_size=text.hidden_size,
        intermediate_size=0 if experts else text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        head_dim=getattr(text, "head_dim", None),
        gated=later,
        linear=linear,
        experts=experts,
        tower=_tower_of(config),
    )


def _tower_of(config: Any) -> Tower:
    vision = config.vision_config
    # in Qwen2-VL, `hidden_size` is the language model's
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    window = getattr(vision, "window_size", None)
    return Tower(
        width=width,
        depth=vision.depth,
        mlp=getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio),
        gated=config.model_type == "qwen2_5_vl",
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        window=window // vision.patch_size if window else None,
        full_blocks=sum(block < vision.depth for block in vision.fullatt_block_indexes) if window else 0,
        mergers=1 + len(getattr(vision, "deepstack_visual_indexes", None) or []),
        branch=getattr(vision, CONFIG_KEY, None) is not None,
    )


# -------------------------------------------------------------------- the formulas


def tower_flops(patches: int, tokens: int, shape: Shape, pairs: float | None = None) -> float:
    """The vision tower on one image: `patches` rows in, `tokens` language tokens out. Without its branch.

    Per block the linear layers and `4·d` for each pair of patches that attend to each other: over the whole image
    `n²` pairs. Then the patch embedding, and the mergers, which read four rows of width `d` per token.

    Args:
        patches, tokens: of the image.
        shape: of the model.
        pairs: within windows, `pairs_in_windows`; needed where the tower has some.

    Raises:
        ValueError: it has, and they are missing.
    """
    tower = shape.tower
    width = tower.width
    in_windows = 0 if tower.window is None else tower.depth - tower.full_blocks
    if in_windows and pairs is None:
        raise ValueError("pairs is missing: this tower attends within windows; pass pairs_in_windows(layout, shape)")
    attended = (tower.depth - in_windows) * patches**2 + in_windows * (pairs or 0)
    linear = 8 * width**2 + (6 if tower.gated else 4) * width * tower.mlp
    merger = 2 * tokens * ((4 * width) ** 2 + 4 * width * shape.hidden_size)
    embedding = 2 * patches * tower.patch_values * width
    return tower.depth * patches * linear + 4 * width * attended + embedding + tower.mergers * merger


def pairs_in_windows(layout: PatchLayout, shape: Shape) -> int | None:
    """Pairs of an image's patches that stand in the same window of the tower; `None` where it has no windows."""
    if shape.tower.window is None:
        return None
    from transformers_apt.models.qwen2_5_vl.modeling_qwen2_5_vl import windows_of

    _, lengths = windows_of([layout], shape.tower.window)
    return int((lengths.long() ** 2).sum())


def image_flops(layout: PatchLayout, shape: Shape) -> float:
    """The vision tower on an image of this tiling, with its branch if it has one."""
    flops = tower_flops(layout.num_patches, layout.num_language_tokens, shape, pairs_in_windows(layout, shape))
    return flops + branch_flops(layout, shape.tower) if shape.tower.branch else flops


def branch_flops(layout: PatchLayout, tower: Tower) -> float:
    """What a branch adds: nothing for base patches, and for one of `s` base cells a side

    the embedding of its `s²` parts, `(s² − 1) / 3` products of the 2 × 2 convolution (1 of them for `s = 2`, 4 and 1
    for `s = 4`), and one of the 1 × 1 convolution.
    """
    coarse = {size: count for size, count in layout.patches_by_size.items() if size > 1}
    parts = sum(count * size**2 for size, count in coarse.items())
    halvings = sum(count * (size**2 - 1) // 3 for size, count in coarse.items())
    embedding = 2 * parts * tower.patch_values * tower.width
    return embedding + 2 * tower.width**2 * (4 * halvings + sum(coarse.values()))


def prefill_flops(tokens: int, shape: Shape) -> float:
    """The language model up to the first answer token, on a prompt of `tokens` tokens, those of images included.

    Per layer attention or the gated delta rule, and the three matrices of the gated MLP or those of the experts that a
    token goes through; then the logits of the last position. DeepStack only adds.
    """
    linear = shape.linear.layers if shape.linear else 0
    mixing = (shape.layers - linear) * _attention_flops(tokens, shape)
    if shape.linear:
        mixing += linear * _delta_rule_flops(tokens, shape.hidden_size, shape.linear)
    return mixing + shape.layers * tokens * _mlp_flops(shape) + 2 * shape.hidden_size * shape.vocab_size


def _attention_flops(tokens: int, shape: Shape) -> float:
    """Grouped-query attention over the earlier tokens: half of the square, as causal kernels compute it."""
    head = shape.head_dim or shape.hidden_size // shape.heads
    queries, keys = shape.heads * head, shape.kv_heads * head
    projections = 2 * shape.hidden_size * ((3 if shape.gated else 2) * queries + 2 * keys)
    return tokens * projections + 2 * tokens**2 * queries


def _delta_rule_flops(tokens: int, width: int, linear: LinearAttention) -> float:
    """Projections (queries, keys, values, output gate, two numbers a head, output), convolution, and the rule itself,
    whose state is read twice and written once in every chunk of `CHUNK` tokens."""
    keys, values = linear.key_heads * linear.key_dim, linear.value_heads * linear.value_dim
    projections = 2 * width * (2 * keys + 3 * values + 2 * linear.value_heads)
    convolution = 2 * linear.kernel * (2 * keys + values)
    within = CHUNK**2 * (4 * linear.key_dim + 2 * linear.value_dim)
    state = 6 * CHUNK * linear.key_dim * linear.value_dim
    chunks = math.ceil(tokens / CHUNK) * linear.value_heads
    return tokens * (projections + convolution) + chunks * (within + state)


def _mlp_flops(shape: Shape) -> float:
    """Of a token in a layer; of experts also the router, and the gate of the shared one."""
    width, experts = shape.hidden_size, shape.experts
    if experts is None:
        return 6 * width * shape.intermediate_size
    shared = 6 * width * experts.shared + 2 * width if experts.shared else 0
    return 2 * width * experts.count + 6 * width * experts.active * experts.width + shared
