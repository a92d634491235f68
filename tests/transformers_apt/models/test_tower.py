"""The vision tower on mixed-scale patches, against slow loops over upstream's own modules."""

import pytest
import torch
from transformers import AttentionInterface

from apt_code import PatchLayout

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}


@pytest.fixture
def batch(processor, half_plain, photos):
    """Three images of different sizes, in every patch size."""
    images = [half_plain, photos[2], photos[0]]
    batch = processor(images=images, return_tensors="pt", **BUDGET)
    assert set(batch["image_patch_layout"][:, 2].tolist()) == {1, 2, 4}
    return batch


def layouts_of(batch):
    return PatchLayout.unpack(batch["image_patch_layout"], batch["image_grid_thw"])


def features(model, batch, **options):
    with torch.no_grad():
        return model.get_image_features(**batch, return_dict=True, **options)


def rotated(vector, position, inv_freq):
    """One head's query or key, turned by hand: channel pairs (i, i + half), row angles first, then column angles."""
    angles = torch.cat([position[0] * inv_freq, position[1] * inv_freq])
    half = len(vector) // 2
    first, second = vector[:half], vector[half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


def slow_tower(visual, rows, layout):
    """One image, one patch, one head at a time; only the linear layers and norms are upstream's."""
    hidden = visual.patch_embed(rows)
    head_dim = visual.config.embed_dim // visual.config.num_heads
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float64) / (head_dim // 2))
    places = [(row + (size - 1) / 2, col + (size - 1) / 2) for row, col, size in layout.patches.tolist()]
    for block in visual.blocks:
        normed = block.norm1(hidden)
        query, key, value = block.attn.qkv(normed).view(len(rows), 3, visual.config.num_heads, head_dim).unbind(1)
        mixed = torch.zeros_like(query)
        for head in range(visual.config.num_heads):
            turned = [
                torch.stack(
                    [rotated(vector[head], place, inv_freq) for vector, place in zip(part, places, strict=True)]
                )
                for part in (query, key)
            ]
            weights = torch.softmax(turned[0] @ turned[1].T * head_dim**-0.5, dim=-1)
            mixed[:, head] = weights @ value[:, head]
        hidden = hidden + block.attn.proj(mixed.flatten(1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    tokens, index = [], 0
    while index < len(rows):
        if layout.patches[index, 2] == 1:
            four, index = [index, index + 1, index + 2, index + 3], index + 4
        else:
            four, index = [index] * 4, index + 1
        tokens.append(visual.merger.mlp(visual.merger.ln_q(hidden[four]).flatten()))
    return hidden, torch.stack(tokens)


def test_against_slow_loops(load_model, batch):
    model = load_model(dtype=torch.float64)
    found = features(model, batch)
    layouts = layouts_of(batch)
    rows = batch["pixel_values"].double().split([layout.num_patches for layout in layouts])
    with torch.no_grad():
        expected = [slow_tower(model.model.visual, *image) for image in zip(rows, layouts, strict=True)]
    # the rotary angles are float32 in upstream
    torch.testing.assert_close(
        found.last_hidden_state, torch.cat([hidden for hidden, _ in expected]), rtol=1e-4, atol=1e-4
    )
    assert len(found.pooler_output) == len(layouts)
    for tokens, layout, (_, wanted) in zip(found.pooler_output, layouts, expected, strict=True):
        assert len(tokens) == layout.num_language_tokens
        torch.testing.assert_close(tokens, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_images_are_separate_attention_segments(attention, load_model, batch):
    model = load_model(attn_implementation=attention)
    before = features(model, batch).pooler_output
    changed = batch["pixel_values"].clone()
    first, second, _ = [layout.num_patches for layout in layouts_of(batch)]
    changed[first : first + second] += 1.0
    after = features(model, {**batch, "pixel_values": changed}).pooler_output
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])


def test_a_patch_sees_its_whole_image(load_model, batch):
    model = load_model()
    before = features(model, batch).last_hidden_state
    changed = batch["pixel_values"].clone()
    changed[0] += 1.0
    after = features(model, {**batch, "pixel_values": changed}).last_hidden_state
    end = layouts_of(batch)[0].num_patches
    assert bool((before[:end] != after[:end]).any(dim=1).all())


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_fake"])
def test_flash_attention_gets_the_image_boundaries(name, load_model, batch, monkeypatch):
    """FlashAttention takes all images as one sequence and is told where each begins."""
    calls = []

    def flash(module, query, key, value, attention_mask, **kwargs):
        calls.append(kwargs)
        segments = zip(kwargs["cu_seq_lens_q"][:-1].tolist(), kwargs["cu_seq_lens_q"][1:].tolist(), strict=True)
        parts = [
            torch.nn.functional.scaled_dot_product_attention(*(tensor[:, :, a:b] for tensor in (query, key, value)))
            for a, b in segments
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, name, flash)
    model = load_model()
    expected = features(model, batch)
    model.model.visual.config._attn_implementation_internal = name
    found = features(model, batch)
    counts = [layout.num_patches for layout in layouts_of(batch)]
    assert len(calls) == len(model.model.visual.blocks)
    for call in calls:
        assert call["cu_seq_lens_q"].tolist() == call["cu_seq_lens_k"].tolist() == [0, *torch.tensor(counts).cumsum(0)]
        assert call["cu_seq_lens_q"].dtype == torch.int32
        assert int(call["max_length_q"]) == int(call["max_length_k"]) == max(counts)
        assert call["is_causal"] is False
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)


def test_recorded_hidden_states(load_model, batch):
    """Upstream's output recording works in the mixed-scale tower too."""
    model = load_model(attn_implementation="eager")
    plain = features(model, batch)
    visual = model.model.visual
    with torch.no_grad():
        recorded = visual(
            batch["pixel_values"],
            grid_thw=batch["image_grid_thw"],
            patch_layout=batch["image_patch_layout"],
            output_hidden_states=True,
        )
    assert len(recorded.hidden_states) == len(visual.blocks) + 1
    assert torch.equal(recorded.hidden_states[-1], plain.last_hidden_state)


def test_a_tuple_on_demand(load_model, batch):
    model = load_model()
    with torch.no_grad():
        hidden, tokens = model.get_image_features(**batch, return_dict=False)[:2]
    expected = features(model, batch)
    assert torch.equal(hidden, expected.last_hidden_state)
    assert all(torch.equal(*pair) for pair in zip(tokens, expected.pooler_output, strict=True))
