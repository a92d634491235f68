"""Models of the published shapes with random weights, which cost the same time as trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers

from transformers_apt.embedded.tiny_checkpoint import build_config
from transformers_apt.models.flops import PUBLISHED, Shape

SMALL = "small"
"""A size of each family that is for a CPU, with the tokenizer's own vocabulary."""

HEADS = 16
"""Of every published vision tower."""


def sizes_of(family: str) -> dict[str, Shape]:
    """The family's published shapes by name, and in front of them a small one.

    Raises:
        ValueError: no such family.
    """
    if family not in PUBLISHED:
        raise ValueError(f"--family {family}: expected one of {list(PUBLISHED)}")
    published = PUBLISHED[family]
    first = next(iter(published.values()))
    small = replace(
        first,
        hidden_size=512,
        intermediate_size=1408 if first.intermediate_size else 0,
        layers=4,
        heads=8,
        kv_heads=2,
        head_dim=first.head_dim and 64,
        vocab_size=0,
        linear=first.linear and replace(first.linear, layers=3),
        experts=first.experts and replace(first.experts, count=8, active=2),
        tower=shortened(first, depth=2).tower,
    )
    return {SMALL: small, **published}


def shortened(shape: Shape, depth: int) -> Shape:
    """The same with fewer blocks in the vision tower, of each kind as many as before, in proportion."""
    tower = shape.tower
    full = max(1, round(tower.full_blocks * depth / tower.depth)) if tower.full_blocks else 0
    return replace(shape, tower=replace(tower, depth=depth, full_blocks=full, mergers=min(tower.mergers, depth + 1)))


def config_of(family: str, shape: Shape, tokenizer: Any = None) -> Any:
    """The config of a model of this shape.

    Args:
        family: of the model.
        shape: its sizes; with `vocab_size=0`, the tokenizer's vocabulary.
        tokenizer: whose token ids the config names; `None` for the tiny checkpoints'.
    """
    config = build_config("test", tokenizer, family)  # type: ignore[arg-type]  # one of the families
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    head = shape.head_dim or shape.hidden_size // shape.heads
    text |= {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab_size or text["vocab_size"],
        "rope_parameters": {
            **text["rope_parameters"],
            "rope_theta": 1e6,
            "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
        },
        "layer_types": _layer_types(shape),
    }
    if shape.head_dim:
        text["head_dim"] = shape.head_dim
    if shape.intermediate_size:
        text["intermediate_size"] = shape.intermediate_size
    if shape.linear:
        text |= {
            "linear_num_key_heads": shape.linear.key_heads,
            "linear_num_value_heads": shape.linear.value_heads,
            "linear_key_head_dim": shape.linear.key_dim,
            "linear_value_head_dim": shape.linear.value_dim,
        }
    if shape.experts:
        # upstream knows one of the two by another name
        counts = dict.fromkeys({"num_experts", "num_local_experts"} & set(text), shape.experts.count)
        text |= counts | {
            "num_experts_per_tok": shape.experts.active,
            "moe_intermediate_size": shape.experts.width,
            "shared_expert_intermediate_size": shape.experts.shared,
        }
    tower = shape.tower
    vision |= {"depth": tower.depth, "num_heads": HEADS}
    if family == "qwen2_vl":
        vision |= {"embed_dim": tower.width, "hidden_size": shape.hidden_size}
    else:
        vision |= {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp,
            "out_hidden_size": shape.hidden_size,
            "num_position_embeddings": 48**2,  # of every published tower that has such a table
            "fullatt_block_indexes": _spread(tower.full_blocks, tower.depth),
            "deepstack_visual_indexes": _spread(tower.mergers - 1, tower.depth),
        }
    return type(config)(**{**config.to_dict(), "text_config": text, "vision_config": vision})


def random_model(config: Any, device: str, dtype: str) -> Any:
    """A model of this config, in evaluation mode."""
    name = type(config).__name__.removesuffix("Config")
    with _made_there(device, dtype):
        return getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()


def random_tower(config: Any, device: str, dtype: str) -> Any:
    """Its vision tower alone."""
    kind = type(random_model(config, "meta", dtype).model.visual)
    with _made_there(device, dtype):
        return kind(config.vision_config).eval()


@contextmanager
def _made_there(device: str, dtype: str) -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _layer_types(shape: Shape) -> list[str]:
    """Where there is linear attention, a full one at the end of each group of layers."""
    full = shape.layers - (shape.linear.layers if shape.linear else 0)
    every = shape.layers // full
    return ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(shape.layers)]


def _spread(count: int, depth: int) -> list[int]:
    """So many of the blocks, at equal distances, the last one among them."""
    return [depth * (place + 1) // count - 1 for place in range(count)]
