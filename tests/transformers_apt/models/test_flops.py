"""The FLOPs estimate against what torch counts when a real model of that shape runs."""

import dataclasses

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from apt_code.patch_layout import PatchLayout
from transformers_apt import training
from transformers_apt.engine.finder import FAMILIES
from transformers_apt.models.families import NAMES
from transformers_apt.models.flops import (
    PUBLISHED,
    QWEN2_VL,
    image_flops,
    pairs_in_windows,
    prefill_flops,
    shape_of,
    tower_flops,
)
from transformers_apt.models.stats import image_layouts


@pytest.fixture
def counted_model(load_model):
    """Written out in products that torch can count."""
    return load_model(attn_implementation="eager", experts_implementation="eager")


def counted(run):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.every_family(moe=True)
@pytest.mark.parametrize("adaptive", [False, True])
def test_tower(counted_model, inputs, processor, half_plain, adaptive):
    if not adaptive:
        off = {"patch_selection_method": "off"}
        inputs = processor.image_processor(images=half_plain, return_tensors="pt", **off)
    names = ["pixel_values", "image_grid_thw"] + ["image_patch_layout"] * adaptive
    (layout,) = image_layouts(inputs)
    measured = counted(lambda: counted_model.model.get_image_features(**{name: inputs[name] for name in names}))
    # rotary frequencies are a tiny product too
    assert measured == pytest.approx(image_flops(layout, shape_of(counted_model.config)), rel=2e-3)


@pytest.mark.every_family
def test_tower_with_a_branch(counted_model, processor, half_plain):
    without = shape_of(counted_model.config)
    training.add_branch(counted_model)
    shape = shape_of(counted_model.config)
    settings = {"patch_selection_method": "budget", "alpha": 0.3, "patch_parts": True}
    inputs = processor.image_processor(images=half_plain, return_tensors="pt", **settings)
    (layout,) = image_layouts(inputs)
    assert set(layout.patches_by_size) == {1, 2, 4}
    measured = counted(lambda: counted_model.model.get_image_features(**inputs))
    assert measured == pytest.approx(image_flops(layout, shape), rel=2e-3)
    assert image_flops(layout, shape) > 1.01 * image_flops(layout, without)
    full = PatchLayout.uniform(layout.grid)
    assert image_flops(full, shape) == image_flops(full, without), "base patches do not pass it"


@pytest.mark.every_family(moe=True)
@pytest.mark.parametrize("tokens", [50, 130])
def test_prefill(counted_model, tokens):
    shape = shape_of(counted_model.config)
    ids = torch.arange(3, 3 + tokens)[None]
    measured = counted(lambda: counted_model(input_ids=ids, logits_to_keep=1))
    # eager attention computes the whole square, of which a causal kernel needs half
    full = shape.layers - (shape.linear.layers if shape.linear else 0)
    other_half = full * 2 * tokens**2 * shape.heads * (shape.head_dim or shape.hidden_size // shape.heads)
    assert measured - other_half == pytest.approx(prefill_flops(tokens, shape), rel=2e-3)


def test_published_towers_are_the_same_but_for_the_merger():
    small, large = (dataclasses.replace(shape, hidden_size=1) for shape in QWEN2_VL.values())
    assert tower_flops(1000, 250, small) == tower_flops(1000, 250, large)


@pytest.mark.parametrize(
    ("family", "size", "billions"),
    [
        *[("qwen2_vl", "2b", 1.31), ("qwen2_vl", "7b", 6.53), ("qwen2_5_vl", "3b", 2.77), ("qwen2_5_vl", "7b", 6.53)],
        *[("qwen3_vl", "2b", 1.41), ("qwen3_vl", "4b", 3.63), ("qwen3_vl", "8b", 6.95)],
        # of 30 and 35 billion, 3 are active
        *[("qwen3_vl_moe", "30b-a3b", 2.73), ("qwen3_5", "9b", 6.95), ("qwen3_5", "27b", 24.4)],
        ("qwen3_5_moe", "35b-a3b", 2.5),
    ],
)
def test_published_shapes_have_their_parameters(family, size, billions):
    """A token costs two operations per weight of the blocks that it goes through; embeddings are looked up."""
    shape = PUBLISHED[family][size]
    bare = dataclasses.replace(shape, vocab_size=0)
    # of a short prompt, where attention costs nothing and the state of the delta rule little
    per_token = prefill_flops(64, bare) / 64 / 2e9
    assert per_token == pytest.approx(billions, rel=0.03)
    assert prefill_flops(0, shape) == 2 * shape.hidden_size * shape.vocab_size


def test_published_sizes_are_upstreams_defaults_where_it_has_them():
    assert shape_of(transformers.Qwen3_5Config()) == PUBLISHED["qwen3_5"]["9b"]
    assert shape_of(transformers.Qwen3_5MoeConfig()) == PUBLISHED["qwen3_5_moe"]["35b-a3b"]
    assert shape_of(transformers.Qwen3VLConfig()).tower == PUBLISHED["qwen3_vl"]["8b"].tower
    vision = transformers.Qwen2_5_VLConfig(vision_config={"hidden_size": 1280})  # as the checkpoints say
    assert shape_of(vision).tower == PUBLISHED["qwen2_5_vl"]["7b"].tower
    assert shape_of(transformers.Qwen2VLConfig()).tower == QWEN2_VL["7b"].tower


def test_every_family_has_a_name_and_a_shape():
    assert list(NAMES) == list(FAMILIES) and set(PUBLISHED) == set(NAMES)


def test_windows_cost_what_stands_in_them():
    windowed = PUBLISHED["qwen2_5_vl"]["7b"]
    layout = PatchLayout.uniform((16, 20))  # 2 by 3 windows, the last ones half as wide
    assert pairs_in_windows(layout, windowed) == 4 * 64**2 + 2 * 32**2
    assert pairs_in_windows(layout, QWEN2_VL["7b"]) is None
    with pytest.raises(ValueError, match="pairs is missing"):
        tower_flops(320, 80, windowed)
    everywhere = dataclasses.replace(windowed, tower=dataclasses.replace(windowed.tower, window=None))
    assert image_flops(layout, windowed) < image_flops(layout, everywhere)
