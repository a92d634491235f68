"""The vision towers on mixed-scale patches, against slow loops over upstream's own modules."""

import itertools

import pytest
import torch
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from apt_code import InvalidLayoutError
from tests.transformers_apt.models.references import BUDGET, SELECTIONS, layouts_of, visual
from tests.transformers_apt.models.slow_towers import order_of_windows, slow_tower, window_of
from transformers_apt.models.qwen2_5_vl import modeling_qwen2_5_vl

pytestmark = pytest.mark.every_family


@pytest.fixture(params=SELECTIONS)
def batch(request, processor, half_plain, photos):
    """Three images of different sizes, in every patch size."""
    images = [half_plain, photos[2], photos[1]]
    batch = processor(images=images, return_tensors="pt", **SELECTIONS[request.param])
    assert set(batch["image_patch_layout"][:, 2].tolist()) == {1, 2, 4}
    assert all(bool(layout.dropped_cells) == (request.param == "dropping") for layout in layouts_of(batch))
    return batch


def features(model, batch, **options):
    with torch.no_grad():
        return model.get_image_features(**batch, return_dict=True, **options)


def close(found, expected):
    """The rotary angles are float32 in upstream, and so is a coordinate in the table of positions."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.every_family(moe=True)
def test_against_slow_loops(family, load_model, batch):
    model = load_model(dtype=torch.float64)
    tower = model.model.visual
    if "qwen3_vl" in family:  # a block's number is not its merger's
        tower.deepstack_visual_indexes = [1]
    found = features(model, batch)
    layouts = layouts_of(batch)
    rows = batch["pixel_values"].double().split([layout.num_patches for layout in layouts])
    with torch.no_grad():
        expected = [slow_tower(family, tower, *image) for image in zip(rows, layouts, strict=True)]
    close(found.last_hidden_state, torch.cat([hidden for hidden, _, _ in expected]))
    assert len(found.pooler_output) == len(layouts)
    for tokens, layout, (_, wanted, _) in zip(found.pooler_output, layouts, expected, strict=True):
        assert len(tokens) == layout.num_language_tokens
        close(tokens, wanted)
    if "qwen3_vl" in family:
        (deep,) = found.deepstack_features
        for tokens, (_, _, (wanted,)) in zip(deep, expected, strict=True):
            close(tokens, wanted)


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
    """In Qwen2.5-VL by its one block of full attention."""
    model = load_model()
    before = features(model, batch).last_hidden_state
    changed = batch["pixel_values"].clone()
    changed[0] += 1.0
    after = features(model, {**batch, "pixel_values": changed}).last_hidden_state
    end = layouts_of(batch)[0].num_patches
    assert bool((before[:end] != after[:end]).any(dim=1).all())


@pytest.mark.parametrize("family", ["qwen2_5_vl"], scope="session")
def test_in_blocks_with_windows_a_patch_sees_its_window(load_model, batch):
    """And nothing else: with windows in every block, one changed patch changes the tokens of its window."""
    model = load_model()
    model.model.visual.fullatt_block_indexes = []
    patches, tokens = [], []
    for image, layout in enumerate(layouts_of(batch)):
        windows = [(image, *window_of(patch, 14)) for patch in layout.patches.tolist()]
        patches += windows
        tokens += [windows[index] for index in layout.merger_index[::4].tolist()]
    assert len(set(patches)) > 8
    before = torch.cat(features(model, batch).pooler_output)
    for window in sorted(set(patches)):
        changed = batch["pixel_values"].clone()
        changed[patches.index(window)] += 1.0
        after = torch.cat(features(model, {**batch, "pixel_values": changed}).pooler_output)
        assert (before != after).any(dim=1).tolist() == [other == window for other in tokens]


def segments_of(model, block, batch):
    """The lengths of a block's attention segments, in the order of upstream's tower."""
    layouts = layouts_of(batch)
    full = getattr(model.config.vision_config, "fullatt_block_indexes", None)
    if full is None or block in full:
        return [layout.num_patches for layout in layouts]
    lengths = []
    for layout in layouts:
        windows = [window_of(patch, 14) for patch in layout.patches.tolist()]
        lengths += [windows.count(window) for window in order_of_windows(windows, layout.grid)]
    return lengths


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_fake"])
def test_flash_attention_gets_the_boundaries(name, load_model, batch, monkeypatch):
    """FlashAttention takes all images as one sequence and is told where each of them (or each window) begins."""
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
    assert len(calls) == len(model.model.visual.blocks)
    for number, call in enumerate(calls):
        counts = segments_of(model, number, batch)
        assert call["cu_seq_lens_q"].tolist() == call["cu_seq_lens_k"].tolist() == [0, *torch.tensor(counts).cumsum(0)]
        assert call["cu_seq_lens_q"].dtype == torch.int32
        assert int(call["max_length_q"]) == int(call["max_length_k"]) == max(counts)
        assert call["is_causal"] is False
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("family", ["qwen2_5_vl"], scope="session")
def test_windows_of_equal_length_are_attended_to_together(load_model, processor, half_plain, photos, monkeypatch):
    """With the bits that they have one by one, and a call for each length instead of one for each window."""
    model = load_model(attn_implementation="sdpa")
    images = [half_plain.resize((896, 672)), photos[1].resize((448, 560))]
    mixed, split = (
        processor(images=images, return_tensors="pt", do_resize=False, **{**BUDGET, "alpha": alpha})
        for alpha in (0.3, 1.0)
    )
    calls = []
    known = AttentionInterface()["sdpa"]

    def attend(module, query, *args, **kwargs):
        calls.append(tuple(query.shape[0::2]))
        return known(module, query, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", attend)
    for batch in (mixed, split):
        calls.clear()
        together = features(model, batch)
        expected = []
        for number in range(len(model.model.visual.blocks)):
            segments = segments_of(model, number, batch)
            if number in model.config.vision_config.fullatt_block_indexes:  # whole images, as upstream
                expected += [(1, length) for length in segments]
            else:
                expected += [(len(list(run)), length) for length, run in itertools.groupby(segments)]
        assert calls == expected and max(count for count, _ in calls) > 5
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(modeling_qwen2_5_vl, "runs_of", lambda lengths: None)  # then upstream's own loop
            one_by_one = features(model, batch)
        assert len(calls) > 2 * len(expected)
        assert torch.equal(together.last_hidden_state, one_by_one.last_hidden_state)


def test_recorded_hidden_states(load_model, batch):
    """Upstream's output recording works in the mixed-scale tower too."""
    model = load_model(attn_implementation="eager")
    plain = features(model, batch)
    tower = model.model.visual
    with torch.no_grad():
        recorded = tower(
            batch["pixel_values"],
            grid_thw=batch["image_grid_thw"],
            patch_layout=batch["image_patch_layout"],
            patch_counts=batch["image_patch_counts"],
            output_hidden_states=True,
        )
    assert len(recorded.hidden_states) == len(tower.blocks) + 1
    assert torch.equal(recorded.hidden_states[-1], plain.last_hidden_state)


def test_a_tuple_on_demand(load_model, batch):
    model = load_model()
    with torch.no_grad():
        hidden, tokens = model.get_image_features(**batch, return_dict=False)[:2]
    expected = features(model, batch)
    assert torch.equal(hidden, expected.last_hidden_state)
    assert all(torch.equal(*pair) for pair in zip(tokens, expected.pooler_output, strict=True))


# ---------------------------------------------------------------- DeepStack


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"], scope="session")
def test_deepstack_features_reach_the_early_layers(load_model, inputs):
    """One feature for each placeholder, at its place."""
    model, seen = load_model(), []
    model.model.language_model.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    with torch.no_grad():
        logits = model(**inputs).logits
    (images,) = features(model, visual(inputs)).deepstack_features
    assert torch.equal(seen[0]["visual_pos_masks"], inputs["mm_token_type_ids"] == 1)
    assert all(map(torch.equal, seen[0]["deepstack_visual_embeds"], [torch.cat(images)]))
    with torch.no_grad():
        for merger in model.model.visual.deepstack_merger_list:
            merger.linear_fc2.weight.zero_(), merger.linear_fc2.bias.zero_()
        assert not torch.allclose(model(**inputs).logits, logits, atol=1e-3), "they are not read"


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"], scope="session")
@pytest.mark.parametrize("settings", [{"patch_selection_method": "off"}, {**BUDGET, "alpha": 1.0}], ids=["off", "1.0"])
def test_deepstack_features_of_everything_are_upstreams(settings, load_model, processor, photos, upstream):
    def deep(model, **settings):
        return features(model, processor(images=photos, return_tensors="pt", **settings)).deepstack_features

    with upstream():
        expected = deep(load_model())
    for found, wanted in zip(deep(load_model(), **settings), expected, strict=True):
        parts = [torch.cat(list(part)) for part in (found, wanted)]  # one tensor per image, or one of all
        assert torch.equal(*parts)


@pytest.mark.parametrize("family", ["qwen2_vl"], scope="session")
def test_precomputed_arguments_leave_the_grid_unread(model, processor, half_plain):
    """It may lie where reading it would wait for a device, or have no values at all; a lost layout is still seen."""
    visual = model.model.visual
    off = processor(images=half_plain, return_tensors="pt", patch_selection_method="off")
    grid, pixels = off["image_grid_thw"], off["pixel_values"]
    given = {
        "position_ids": get_vision_position_ids(grid, visual.spatial_merge_size),
        "cu_seqlens": get_vision_cu_seqlens(grid),
        "max_seqlen": int(grid.prod()),
    }
    with torch.no_grad():
        expected = visual(pixels, grid).pooler_output
        assert torch.equal(visual(pixels, grid.to("meta"), **given).pooler_output, expected)
        without_positions = {name: value for name, value in given.items() if name != "position_ids"}
        assert torch.equal(visual(pixels, grid, **without_positions).pooler_output, expected)
        with pytest.raises(InvalidLayoutError, match="there is no image_patch_layout"):
            visual(pixels[:-4], grid.to("meta"), **given)


@pytest.mark.parametrize("family", ["qwen2_5_vl"], scope="session")
def test_windows_that_a_patch_could_straddle_are_refused(model, batch, monkeypatch):
    monkeypatch.setattr(model.model.visual, "window_size", 6 * 14)
    with pytest.raises(ValueError, match=r"windows of 6×6 patches: expected a multiple of 4.*'off'"):
        features(model, batch)
