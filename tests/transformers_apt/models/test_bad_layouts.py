"""A layout, pixels and grids that do not belong together: refused by name, whatever was done to them."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from apt_code import InvalidLayoutError
from tests.apt_code.references import is_layout
from tests.transformers_apt.models.references import BUDGET, SELECTIONS, visual

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def model(load_model):
    return load_model()


@pytest.fixture(scope="module", params=["whole", "dropping", "of an earlier release"])
def batch(request, folder, photos, half_plain):
    """Two images of different grids in one prompt."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "And these?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    settings = SELECTIONS.get(request.param, BUDGET)
    batch = processor(images=[half_plain, photos[2]], text=text, return_tensors="pt", images_kwargs=settings)
    if request.param == "of an earlier release":
        del batch["image_patch_counts"]
    return batch


def is_another_tiling(batch):
    """Of as many patches: with counts, cells may be left out anywhere, and nobody can tell."""
    if not {"image_patch_counts", "image_patch_layout", "image_grid_thw"} <= set(batch):
        return False
    layout, counts = batch["image_patch_layout"], batch["image_patch_counts"].tolist()
    grids = [tuple(grid) for grid in batch["image_grid_thw"].tolist()]
    if not isinstance(layout, torch.Tensor) or layout.is_meta or layout.dtype != torch.int64 or layout.ndim != 2:
        return False
    if len(counts) != len(grids) or sum(counts) != len(layout) or layout.shape[1] != 3:
        return False
    return all(
        time == 1 and h > 0 < w and h % 2 == w % 2 == 0 and is_layout(part.tolist(), (h, w), whole=False)
        for part, (time, h, w) in zip(layout.split(counts), grids, strict=True)
    )


def shuffle(batch, draw):
    order = draw(st.permutations(range(len(batch["image_patch_layout"]))))
    batch["image_patch_layout"] = batch["image_patch_layout"][order]
    if draw(st.booleans()):  # with their pixels: the set is a tiling still, its order is not
        batch["pixel_values"] = batch["pixel_values"][order]


def duplicate(batch, draw):
    names = draw(st.sampled_from([["image_patch_layout"], ["pixel_values"], ["image_patch_layout", "pixel_values"]]))
    i = draw(st.integers(0, len(batch["image_patch_layout"]) - 1))
    for name in names:
        batch[name] = torch.cat([batch[name][: i + 1], batch[name][i:]])


def drop(batch, draw):
    names = draw(st.sampled_from([["image_patch_layout"], ["pixel_values"], ["image_patch_layout", "pixel_values"]]))
    start, count = draw(st.integers(0, len(batch["image_patch_layout"]) - 1)), draw(st.integers(1, 200))
    for name in names:
        batch[name] = torch.cat([batch[name][:start], batch[name][start + count :]])


def change_a_number(batch, draw):
    layout = batch["image_patch_layout"]
    row, column = draw(st.integers(0, len(layout) - 1)), draw(st.integers(0, 2))
    layout[row, column] = draw(st.integers(-2, 20) | st.integers(-(2**63), 2**63 - 1))


def other_type(batch, draw):
    kind = draw(st.sampled_from([torch.int32, torch.float32, torch.bool, torch.uint8, torch.float64]))
    batch["image_patch_layout"] = batch["image_patch_layout"].to(kind)


def other_shape(batch, draw):
    layout = batch["image_patch_layout"]
    changed = (
        layout.T,
        layout.flatten(),
        layout[None],
        layout[:, :2],
        layout[0],
        layout[:0],
        layout.tolist(),
        7,
        "no",
    )
    batch["image_patch_layout"] = draw(st.sampled_from(changed))


def no_values(batch, draw):
    batch["image_patch_layout"] = batch["image_patch_layout"].to("meta")


def change_the_grid(batch, draw):
    grid = batch["image_grid_thw"]
    grid[draw(st.integers(0, 1)), draw(st.integers(0, 2))] = draw(st.integers(-4, 40))


def other_grids(batch, draw):
    grid = batch["image_grid_thw"]
    changed = (grid.flip(0), grid[:1], grid[:0], grid.repeat(2, 1), grid[:, [0, 2, 1]])
    batch["image_grid_thw"] = draw(st.sampled_from(changed))


def leave_out(batch, draw):
    for name in draw(st.sampled_from([["image_patch_layout"], ["pixel_values"], ["image_grid_thw"]])):
        del batch[name]


def lose_placeholders(batch, draw):
    places = batch["mm_token_type_ids"][0].nonzero().flatten().tolist()
    gone = set(draw(st.lists(st.sampled_from(places), min_size=1, unique=True)))
    kept = [i for i in range(batch["input_ids"].shape[1]) if i not in gone]
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        batch[name] = batch[name][:, kept]


def change_the_counts(batch, draw):
    if "image_patch_counts" not in batch:
        return
    counts = batch["image_patch_counts"]
    changed = (counts.flip(0), counts[:1], counts[:0], counts + 1, counts.float(), counts[None], counts.tolist(), 7)
    batch["image_patch_counts"] = draw(st.sampled_from(changed))


SPOILS = (
    *(change_the_counts, shuffle, duplicate, drop, change_a_number, other_type, other_shape),
    *(no_values, change_the_grid, other_grids, leave_out, lose_placeholders),
)


def differs(batch, other):
    return set(batch) != set(other) or any(
        not (isinstance(batch[name], torch.Tensor) and not batch[name].is_meta)
        or batch[name].dtype != other[name].dtype
        or not torch.equal(batch[name], other[name])
        for name in batch
    )


@pytest.mark.generated
@given(draw=st.data(), spoil=st.sampled_from(SPOILS))
def test_whatever_was_done_to_them_it_is_refused(model, batch, draw, spoil):
    spoiled = {name: value.clone() for name, value in batch.items()}
    spoil(spoiled, draw.draw)
    assume(differs(spoiled, batch))
    same_pixels = len(spoiled.get("pixel_values", ())) == len(batch["pixel_values"])
    assume(spoil in (change_the_counts, lose_placeholders) or not (same_pixels and is_another_tiling(spoiled)))
    with pytest.raises(InvalidLayoutError) as refusal, torch.no_grad():
        model(**spoiled)
    message = str(refusal.value)
    said = ("pass", "call the processor", "expected", "convert", "has shape", "use the")
    assert any(word in message for word in said), f"says not what was expected or to do: {message}"
    assert any(word in message for word in ("layout", "image_patch_counts", "pixel_values", "grid"))


@pytest.mark.parametrize("way", ["forward", "generate"])
def test_a_layout_without_pixels(model, batch, way):
    """Upstream reads the placeholders' own embeddings where the pixels are missing; a layout says there were some."""
    without = {key: value for key, value in batch.items() if key != "pixel_values"}
    with pytest.raises(InvalidLayoutError, match="image_patch_layout without pixel_values"), torch.no_grad():
        getattr(model, way)(**without)


def test_a_layout_for_several_frames(model, batch):
    """The number of frames was not looked at."""
    grids = batch["image_grid_thw"] * torch.tensor([2, 1, 1])
    with pytest.raises(InvalidLayoutError, match=r"image grid \(2, \d+, \d+\): expected \(1, h, w\)"), torch.no_grad():
        model(**{**batch, "image_grid_thw": grids})


# Components that do not belong together -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["forward", "generate"])
def test_a_model_that_was_loaded_before_revert(model, batch, upstream, way):
    """Upstream does not know the layout: it must fail, and not read mixed scales as a grid."""
    with upstream(), pytest.raises((RuntimeError, ValueError, IndexError)), torch.no_grad():
        getattr(model, way)(**batch)


@pytest.mark.parametrize("way", ["forward", "generate"])
def test_adaptive_inputs_that_lost_their_layout_in_a_stock_model(model, batch, upstream, way):
    without = {
        name: value for name, value in batch.items() if name not in ("image_patch_layout", "image_patch_counts")
    }
    with upstream(), pytest.raises((RuntimeError, ValueError, IndexError)), torch.no_grad():
        getattr(model, way)(**without)


def test_a_processor_that_was_loaded_before_revert_is_stock(processor, prompt, half_plain, model, upstream):
    processor.image_processor.patch_selection_method = "budget"
    with upstream():
        stock = processor(images=half_plain, text=prompt(), return_tensors="pt")
        with torch.no_grad():
            expected = model(**stock).logits
    assert "image_patch_layout" not in stock
    with torch.no_grad():  # a stock processor's inputs in a patched model
        assert torch.equal(model(**stock).logits, expected)


def test_a_stale_layout_in_the_next_turn(model, processor, half_plain, photos):
    """A chat of two turns: everything of the first turn is passed on, but the prompt has the second image as well."""
    image, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    chat = [{"role": "user", "content": [image, text]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    first = processor(images=half_plain, text=prompt, return_tensors="pt", **BUDGET)
    chat += [{"role": "assistant", "content": [text]}, {"role": "user", "content": [image, text]}]
    both = processor(
        images=[half_plain, photos[0]],
        text=processor.apply_chat_template(chat, add_generation_prompt=True),
        return_tensors="pt",
        **BUDGET,
    )
    for stale in (["image_patch_layout"], ["image_patch_layout", "image_grid_thw"],
                  ["image_patch_layout", "image_grid_thw", "pixel_values"], list(visual(first))):  # fmt: skip
        mixed = {**both, **{name: first[name] for name in stale}}
        for way in (model, model.generate):
            with pytest.raises(InvalidLayoutError), torch.no_grad():
                way(**mixed)
