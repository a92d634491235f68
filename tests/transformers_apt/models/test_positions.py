"""M-RoPE positions of mixed-scale images, against examples written by hand."""

import pytest
import torch

pytestmark = pytest.mark.every_family

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
TEXT, IMAGE, VIDEO = 0, 1, 2

# A 4×6 base grid: one 56-px patch, then in the two remaining columns a 28-px patch above four 14-px patches.
#   A A A A B B        language tokens A, B, C, whose top-left 28-px cells are
#   A A A A B B        (0, 0), (0, 2) and (1, 2)
#   A A A A c d
#   A A A A e f
GRID = [1, 4, 6]
LAYOUT = [[0, 0, 4], [0, 4, 2], [2, 4, 1], [2, 5, 1], [3, 4, 1], [3, 5, 1]]
CELLS = [(0, 0), (0, 2), (1, 2)]

# A 4×4 grid as one patch: one token, yet the text after it moves on by two.
ONE_GRID, ONE_LAYOUT = [1, 4, 4], [[0, 0, 4]]


@pytest.fixture
def rope(model):
    def rope(types, grids, layout, mask=None, **kwargs):
        types = torch.tensor(types)
        return model.model.get_rope_index(
            torch.full_like(types, 5),
            mm_token_type_ids=types,
            image_grid_thw=torch.tensor(grids),
            image_patch_layout=torch.tensor(layout),
            attention_mask=None if mask is None else torch.tensor(mask),
            **kwargs,
        )

    return rope


def test_text_image_text(rope):
    positions, deltas = rope([[TEXT] * 2 + [IMAGE] * 3 + [TEXT] * 2], [GRID], LAYOUT)
    # Text 0, 1; the image starts at 2 and takes max(4, 6) // 2 = 3 positions, so the text goes on at 5.
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 5, 6],  # time
        [0, 1, 2, 2, 3, 5, 6],  # height
        [0, 1, 2, 4, 4, 5, 6],  # width
    ]
    assert deltas.tolist() == [[7 - 7]]  # the eighth token, at index 7, gets position 7
    assert positions.dtype == torch.int64


def test_a_prompt_that_ends_in_an_image(rope):
    """The next token stands where upstream puts it, at 2 + 3, although no token of the image reaches 4 in height."""
    positions, deltas = rope([[TEXT] * 2 + [IMAGE] * 3], [GRID], LAYOUT)
    assert positions[:, 0].tolist() == [[0, 1, 2, 2, 2], [0, 1, 2, 2, 3], [0, 1, 2, 4, 4]]
    assert deltas.tolist() == [[5 - 5]]
    # One coarse patch at 2: the largest position seen is 2, but upstream's image would end at 3.
    positions, deltas = rope([[TEXT] * 2 + [IMAGE]], [ONE_GRID], ONE_LAYOUT)
    assert positions[:, 0].tolist() == [[0, 1, 2]] * 3
    assert deltas.tolist() == [[4 - 3]]


def test_two_images_in_a_row_of_a_padded_batch(rope):
    """Row 0 is padded and holds one image; row 1 holds two, the second of them at its end."""
    types = [
        [TEXT] * 2 + [TEXT] + [IMAGE] * 3 + [TEXT],
        [TEXT] + [IMAGE] + [TEXT] * 2 + [IMAGE] * 3,
    ]
    mask = [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    positions, deltas = rope(types, [GRID, ONE_GRID, GRID], LAYOUT + ONE_LAYOUT + LAYOUT, mask)
    assert positions[:, 0, 2:].tolist() == [[0, 1, 1, 1, 4], [0, 1, 1, 2, 4], [0, 1, 3, 3, 4]]
    # Row 1: text 0; the patch at 1; text 3, 4; the image from 5 on, text would follow at 8.
    assert positions[:, 1].tolist() == [[0, 1, 3, 4, 5, 5, 5], [0, 1, 3, 4, 5, 5, 6], [0, 1, 3, 4, 5, 7, 7]]
    assert deltas.tolist() == [[5 - 5], [8 - 7]]


def test_an_image_beside_a_video(rope):
    """One frame each: how the frames of a longer video are spaced differs from family to family."""
    types = [[IMAGE] * 3 + [TEXT, VIDEO, TEXT, VIDEO, TEXT]]
    positions, deltas = rope(types, [GRID], LAYOUT, video_grid_thw=torch.tensor([[1, 2, 2]] * 2))
    assert positions[:, 0].tolist() == [[0, 0, 0, 3, 4, 5, 6, 7], [0, 0, 1, 3, 4, 5, 6, 7], [0, 2, 2, 3, 4, 5, 6, 7]]
    assert deltas.tolist() == [[8 - 8]]


def test_a_full_layout_has_upstreams_positions(rope, model):
    cells = [[2 * i + a, 2 * j + b, 1] for i in range(2) for j in range(3) for a in (0, 1) for b in (0, 1)]
    types = [[TEXT] * 3 + [IMAGE] * 6 + [TEXT]]
    expected = model.model.get_rope_index(
        torch.full((1, 10), 5), mm_token_type_ids=torch.tensor(types), image_grid_thw=torch.tensor([GRID])
    )
    for found, wanted in zip(rope(types, [GRID], cells), expected, strict=True):
        assert torch.equal(found, wanted)


def positions_seen(model):
    """Records the position ids of every call of the language model."""
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    return seen


def rope_of(model, batch):
    return model.model.get_rope_index(**{name: value for name, value in batch.items() if name != "pixel_values"})


def test_generate_and_forward_read_these_positions(model, inputs):
    seen = positions_seen(model)
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        model(**inputs)
    prefill, second, third, forward = (position_ids[-3:] for position_ids in seen)
    expected, deltas = rope_of(model, inputs)
    assert torch.equal(prefill, expected) and torch.equal(forward, expected)
    # the image takes as many positions as its longer side has language cells, whatever its tiling
    is_image = inputs["mm_token_type_ids"][0] == 1
    end = int((~is_image).sum()) + int(inputs["image_grid_thw"].max()) // 2
    assert second.flatten().tolist() == [end] * 3 and third.flatten().tolist() == [end + 1] * 3
    assert end == inputs["input_ids"].shape[1] + int(deltas)


def test_decoding_by_hand_after_a_prompt_that_ends_in_an_image(model, processor, half_plain):
    """`forward` with a cache goes on where upstream does. (`generate` adds 1 to the last position of each axis.)"""
    batch = processor(images=half_plain, text="Look: <|image_pad|>", return_tensors="pt", **BUDGET)
    seen = positions_seen(model)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    before = int((batch["mm_token_type_ids"] == 0).sum())
    assert seen[1].flatten().tolist() == [before + int(batch["image_grid_thw"].max()) // 2] * 3


def test_positions_given_by_the_caller_are_used(model, inputs):
    seen = positions_seen(model)
    length = inputs["input_ids"].shape[1]
    position_ids = torch.arange(length).view(1, 1, -1).expand(3, 1, -1) + 7
    with torch.no_grad():
        model(**inputs, position_ids=position_ids)
    assert torch.equal(seen[0], position_ids) and model.model.rope_deltas is None
