"""What the attention mask hides is not there: no placeholder is counted in it, and no prompt ends in it."""

import pytest
import torch

from apt_code import InvalidLayoutError

TEXT, IMAGE = 0, 1

# A 4×6 base grid as three language tokens, in the canonical order: a 56-px patch, a 28-px patch and four of 14 px.
GRID = [1, 4, 6]
LAYOUT = [[0, 0, 4], [0, 4, 2], [2, 4, 1], [2, 5, 1], [3, 4, 1], [3, 5, 1]]
# A 4×4 grid as one patch: one token, yet upstream goes on two positions later. The case in which the tail counts.
ONE_GRID, ONE_LAYOUT = [1, 4, 4], [[0, 0, 4]]
ENDS_IN_ONE = [TEXT, TEXT, IMAGE]


@pytest.fixture
def rope(model):
    def rope(types, mask, grids, layout):
        types = torch.tensor(types)
        return model.model.get_rope_index(
            torch.full_like(types, 5),
            mm_token_type_ids=types,
            image_grid_thw=torch.tensor(grids),
            image_patch_layout=torch.tensor(layout),
            attention_mask=torch.tensor(mask),
        )

    return rope


@pytest.mark.parametrize("hidden", [[TEXT], [TEXT, TEXT], [IMAGE], [IMAGE, IMAGE], [TEXT, IMAGE], [IMAGE, TEXT]])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize(
    ("types", "grid", "layout"),
    [
        (ENDS_IN_ONE, ONE_GRID, ONE_LAYOUT),
        ([TEXT, IMAGE, TEXT], ONE_GRID, ONE_LAYOUT),
        ([IMAGE], ONE_GRID, ONE_LAYOUT),
        ([TEXT, *[IMAGE] * 3], GRID, LAYOUT),
        ([*[IMAGE] * 3, TEXT], GRID, LAYOUT),
    ],
)
def test_padding_changes_nothing_whatever_it_is_marked_as(rope, hidden, side, types, grid, layout):
    before = hidden if side in ("left", "both") else []
    after = hidden if side in ("right", "both") else []
    expected, expected_delta = rope([types], [[1] * len(types)], [grid], layout)
    mask = [[0] * len(before) + [1] * len(types) + [0] * len(after)]
    found, delta = rope([before + types + after], mask, [grid], layout)
    seen = found[:, :, len(before) : len(before) + len(types)]
    assert torch.equal(seen, expected) and torch.equal(delta, expected_delta)


@pytest.mark.every_family
def test_rows_that_end_in_an_image_at_different_places(rope):
    """By hand: the image at 2 is one token, and the next one stands at 4, whatever the row was filled up with."""
    rows = [ENDS_IN_ONE + [TEXT] * 2, [TEXT] * 2 + ENDS_IN_ONE, ENDS_IN_ONE + [IMAGE] * 2, [IMAGE] * 2 + ENDS_IN_ONE]
    masks = [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]] * 2
    positions, deltas = rope(rows, masks, [ONE_GRID] * 4, ONE_LAYOUT * 4)
    assert deltas.tolist() == [[4 - 3]] * 4
    for row, mask in enumerate(masks):
        assert positions[:, row, torch.tensor(mask).bool()].tolist() == [[0, 1, 2]] * 3


@pytest.mark.every_family
def test_each_row_has_its_own_image_behind_hidden_ones(rope):
    """A row whose filling looks like an image must not take the next row's layout."""
    rows = [[IMAGE, TEXT, TEXT, IMAGE, TEXT], [TEXT, *[IMAGE] * 3, IMAGE]]
    masks = [[0, 0, 1, 1, 0], [1, 1, 1, 1, 0]]
    positions, deltas = rope(rows, masks, [ONE_GRID, GRID], ONE_LAYOUT + LAYOUT)
    assert positions[:, 0, 2:4].tolist() == [[0, 1]] * 3
    assert positions[:, 1, :4].tolist() == [[0, 1, 1, 1], [0, 1, 1, 2], [0, 1, 3, 3]]
    assert deltas.tolist() == [[3 - 2], [4 - 4]]


@pytest.mark.every_family
@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_hidden_placeholders_are_missing_ones(rope, hidden):
    """The layout has three language tokens; those that the mask hides are not there to take them."""
    mask = [[1, *[1] * (3 - hidden), *[0] * hidden, 1]]
    with pytest.raises(InvalidLayoutError, match=f"has {3 - hidden} image placeholders .* makes 3 language tokens"):
        rope([[TEXT, IMAGE, IMAGE, IMAGE, TEXT]], mask, [GRID], LAYOUT)


@pytest.mark.every_family
def test_hidden_placeholders_cannot_stand_in_for_missing_ones(rope):
    """Counted with the hidden one, the placeholders would be right."""
    with pytest.raises(InvalidLayoutError, match=r"has 2 image placeholders .* makes 3 language tokens"):
        rope([[IMAGE, TEXT, IMAGE, IMAGE, TEXT]], [[0, 1, 1, 1, 1]], [GRID], LAYOUT)


@pytest.mark.every_family
def test_the_whole_model_goes_on_behind_right_padding_as_without_it(model, processor, half_plain):
    """The next token, decoded by hand after a prompt that ends in an image, stands where it would without padding."""
    settings = {"patch_selection_method": "budget", "alpha": 0.3}
    batch = processor(images=half_plain, text="Look: <|image_pad|>", return_tensors="pt", images_kwargs=settings)
    padded = {name: value.clone() for name, value in batch.items()}
    for name, filling in (("input_ids", 5), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        padded[name] = torch.cat([batch[name], torch.full((1, 3), filling, dtype=batch[name].dtype)], dim=1)
    deltas = []
    with torch.no_grad():
        for inputs in (batch, padded):
            model.model.rope_deltas = None
            model(**inputs)
            deltas.append(int(model.model.rope_deltas))
    assert deltas[0] == deltas[1]


# ---------------------------------------------------------------- the order of a layout


def orders(layout):
    """Every order of a layout's rows but the canonical one, that swaps two."""
    for first in range(len(layout)):
        for second in range(first + 1, len(layout)):
            order = list(range(len(layout)))
            order[first], order[second] = order[second], order[first]
            yield order


@pytest.mark.every_family
def test_a_layout_in_any_other_order_is_refused(rope):
    """It tiles the grid all the same, so nothing but the order says that each token would stand at another's place."""
    for order in orders(LAYOUT):
        with pytest.raises(InvalidLayoutError, match="is out of canonical order"):
            rope([[TEXT, *[IMAGE] * 3]], [[1] * 4], [GRID], [LAYOUT[place] for place in order])
    with pytest.raises(InvalidLayoutError, match="is out of canonical order"):
        rope([[TEXT, *[IMAGE] * 3]], [[1] * 4], [GRID], LAYOUT[::-1])


@pytest.mark.every_family
@pytest.mark.parametrize("way", ["forward", "generate"])
def test_pixels_and_layout_in_another_order_together_are_refused(model, inputs, way):
    """Row by row they still belong together, and every count is right."""
    count = len(inputs["image_patch_layout"])
    for order in (torch.arange(count).flip(0), torch.arange(count).roll(1)):
        shuffled = {**inputs, **{name: inputs[name][order] for name in ("pixel_values", "image_patch_layout")}}
        with pytest.raises(InvalidLayoutError, match="is out of canonical order"), torch.no_grad():
            (model if way == "forward" else model.generate)(**shuffled)


@pytest.mark.every_family
def test_images_in_another_order_than_their_grids_are_refused(rope):
    with pytest.raises(InvalidLayoutError):
        rope([[IMAGE, TEXT, *[IMAGE] * 3]], [[1] * 5], [ONE_GRID, GRID], LAYOUT + ONE_LAYOUT)
