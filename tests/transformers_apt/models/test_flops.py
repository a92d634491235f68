"""The FLOPs estimate against what torch counts when a real model of that shape runs."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from transformers_apt.models.flops import QWEN2_VL, Shape, prefill_flops, tower_flops


@pytest.fixture
def shape(model):
    text, vision = model.config.text_config, model.config.vision_config
    return Shape(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        tower_width=vision.embed_dim,
        tower_depth=vision.depth,
    )


def counted(run):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("adaptive", [False, True])
def test_tower(load_model, inputs, shape, adaptive):
    model = load_model(attn_implementation="eager")
    names = ["pixel_values", "image_grid_thw"] + ["image_patch_layout"] * adaptive
    given = {name: inputs[name] for name in names}
    if not adaptive:
        full = int(inputs["image_grid_thw"].prod())
        given["pixel_values"] = torch.zeros(full, inputs["pixel_values"].shape[1])
    patches = len(given["pixel_values"])
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum()) if adaptive else patches // 4
    measured = counted(lambda: model.model.get_image_features(**given))
    # rotary frequencies are a tiny product too
    assert measured == pytest.approx(tower_flops(patches, tokens, shape), rel=2e-3)


def test_prefill(load_model, shape):
    model = load_model(attn_implementation="eager")
    tokens = 50
    ids = torch.arange(3, 3 + tokens)[None]
    measured = counted(lambda: model(input_ids=ids, logits_to_keep=1))
    # eager attention computes the whole square, of which a causal kernel needs half
    other_half = shape.layers * 2 * tokens**2 * shape.hidden_size
    assert measured - other_half == pytest.approx(prefill_flops(tokens, shape), rel=2e-3)


def test_published_towers_are_the_same_but_for_the_merger():
    small, large = (dataclasses.replace(shape, hidden_size=1) for shape in QWEN2_VL.values())
    assert tower_flops(1000, 250, small) == tower_flops(1000, 250, large)


def test_published_shapes_have_their_parameters():
    """A token costs two operations per weight of the blocks, 1.31B and 6.53B; embeddings are looked up."""
    for name, billions in (("2b", 1.31), ("7b", 6.53)):
        shape = QWEN2_VL[name]
        logits = 2 * shape.hidden_size * shape.vocab_size
        per_token = (prefill_flops(1000, shape) - prefill_flops(0, shape)) / 1000
        assert (per_token - 2 * 1000 * shape.hidden_size * shape.layers) / 2e9 == pytest.approx(billions, rel=0.01)
        assert prefill_flops(0, shape) == logits
