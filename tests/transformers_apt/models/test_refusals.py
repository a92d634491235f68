"""Inputs that do not belong together are refused, by name, before anything is computed."""

import pytest
import torch

from apt_code import InvalidLayoutError
from tests.transformers_apt.models.references import BUDGET, SELECTIONS, VISUAL

pytestmark = pytest.mark.every_family


def drop_a_patch(batch):
    batch["image_patch_layout"] = batch["image_patch_layout"][:-1]
    batch["pixel_values"] = batch["pixel_values"][:-1]


def earlier_release(batch):
    del batch["image_patch_counts"]


def drop_a_patch_of_an_earlier_release(batch):
    drop_a_patch(batch)
    earlier_release(batch)


def leave_out(batch, patches):
    """As if they had been dropped."""
    kept = [i for i in range(len(batch["image_patch_layout"])) if i not in patches]
    for name in ("pixel_values", "image_patch_layout"):
        batch[name] = batch[name][kept]
    batch["image_patch_counts"] = torch.tensor([len(kept)])


def leave_out_a_part_of_a_cell(batch):
    leave_out(batch, [int((batch["image_patch_layout"][:, 2] == 1).nonzero()[1])])


def leave_out_the_first_cell(batch):
    first = batch["image_patch_layout"][:, :2] // 2 == 0
    leave_out(batch, first.all(1).nonzero().flatten().tolist())


def one_count_too_many(batch):
    batch["image_patch_counts"] += 1


def counts_of_two_images(batch):
    count = int(batch["image_patch_counts"])
    batch["image_patch_counts"] = torch.tensor([1, count - 1])


def float_counts(batch):
    batch["image_patch_counts"] = batch["image_patch_counts"].float()


def list_counts(batch):
    batch["image_patch_counts"] = batch["image_patch_counts"].tolist()


def counts_alone(batch):
    del batch["image_patch_layout"]


def drop_a_row(batch):
    batch["pixel_values"] = batch["pixel_values"][:-1]


def overlap(batch):
    """Two patches of one size at one place: the covered area adds up, the tiling does not."""
    small = (batch["image_patch_layout"][:, 2] == 1).nonzero().flatten()
    batch["image_patch_layout"][small[1]] = batch["image_patch_layout"][small[0]]


def swap_two(batch):
    layout = batch["image_patch_layout"]
    layout[[0, 1]] = layout[[1, 0]]


def stick_out(batch):
    last = batch["image_patch_layout"][-1]
    last[1] = 16


def misaligned(batch):
    big = int((batch["image_patch_layout"][:, 2] == 4).nonzero()[0])
    batch["image_patch_layout"][big, 1] += 2


def size_three(batch):
    batch["image_patch_layout"][0, 2] = 3


def no_layout(batch):
    del batch["image_patch_layout"], batch["image_patch_counts"]


def no_grid(batch):
    del batch["image_grid_thw"]


def float_layout(batch):
    batch["image_patch_layout"] = batch["image_patch_layout"].float()


def flat_layout(batch):
    batch["image_patch_layout"] = batch["image_patch_layout"].flatten()


def list_layout(batch):
    batch["image_patch_layout"] = batch["image_patch_layout"].tolist()


def other_grid(batch):
    batch["image_grid_thw"] = batch["image_grid_thw"] - torch.tensor([0, 2, 0])


def other_grid_of_an_earlier_release(batch):
    batch["image_grid_thw"] = batch["image_grid_thw"] + torch.tensor([0, 2, 0])
    earlier_release(batch)


def turned_grid(batch):
    """The area fits, the sides do not."""
    batch["image_grid_thw"] = batch["image_grid_thw"][:, [0, 2, 1]]


def lost_placeholder(batch):
    where = int((batch["mm_token_type_ids"][0] == 1).nonzero()[0])
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        batch[name] = torch.cat([batch[name][:, :where], batch[name][:, where + 1 :]], dim=1)


WRONG = [
    (drop_a_patch, r"image_patch_counts \[\d+\] for 1 image grid\(s\) and \d+ patches"),
    (
        drop_a_patch_of_an_earlier_release,
        r"covers \d+ base cells but .* have \d+; .* `image_patch_counts` where cells",
    ),
    (leave_out_a_part_of_a_cell, "expected once, or not at all with its whole merge cell"),
    (leave_out_the_first_cell, r"base cell \(0, 0\) .*the first one has to be there"),
    (one_count_too_many, r"image_patch_counts \[\d+\] for 1 image grid"),
    (counts_of_two_images, r"image_patch_counts \[1, \d+\] for 1 image grid"),
    (float_counts, r"image_patch_counts of shape \(1,\) and type torch.float32: expected"),
    (list_counts, "image_patch_counts is a list, expected an int64 tensor .* return_tensors='pt'"),
    (counts_alone, "image_patch_counts without image_patch_layout; pass everything"),
    (drop_a_row, "pixel_values has .* rows and image_patch_layout .*, expected one row per patch"),
    (overlap, "out of canonical order|covered 2 times"),
    (swap_two, "out of canonical order"),
    (stick_out, "lies outside its grid"),
    (misaligned, "not aligned to its own size"),
    (size_three, "covers .* base cells|not a power of two"),
    (no_layout, "there is no image_patch_layout; pass everything the processor returned"),
    (no_grid, "image_patch_layout without image_grid_thw"),
    (float_layout, "int64, got torch.float32"),
    (flat_layout, r"\(num_patches, 3\)"),
    (list_layout, "is a list, expected an int64 tensor .* return_tensors='pt'"),
    (other_grid, "lies outside its grid"),
    (other_grid_of_an_earlier_release, r"covers \d+ base cells but the image grids .* have \d+"),
    (turned_grid, "of the layout|base cell"),
    (lost_placeholder, r"the prompt has \d+ image placeholders but image_patch_layout makes \d+ language tokens"),
]


@pytest.fixture
def computed(model):
    """How many blocks of either transformer have run."""
    runs = []
    for block in [*model.model.visual.blocks, *model.model.language_model.layers]:
        block.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_what_does_not_fit_is_refused(spoil, message, way, model, inputs, computed):
    batch = {name: value.clone() for name, value in inputs.items()}
    spoil(batch)
    call = {"forward": model, "generate": model.generate}[way]
    with pytest.raises(InvalidLayoutError, match=message) as refusal, torch.no_grad():
        call(**batch)
    assert isinstance(refusal.value, ValueError)
    assert not computed


def test_an_intact_batch_does_compute(model, inputs, computed):
    with torch.no_grad():
        model(**inputs)
    assert len(computed) == len(model.model.visual.blocks) + len(model.model.language_model.layers)


def test_layouts_of_two_calls_are_not_mixed(model, processor, prompt, half_plain, computed):
    first, second = (
        processor(images=half_plain, text=prompt(), return_tensors="pt", patch_selection_method="budget", alpha=alpha)
        for alpha in (0.3, 0.5)
    )
    for name in ("pixel_values", "image_patch_layout"):
        with pytest.raises(InvalidLayoutError), torch.no_grad():
            model(**{**first, name: second[name]})
    assert not computed


def test_the_tower_itself_refuses(model, inputs, computed):
    visual = model.model.visual
    with pytest.raises(InvalidLayoutError, match="expected one row per patch"):
        visual(
            inputs["pixel_values"][1:], grid_thw=inputs["image_grid_thw"], patch_layout=inputs["image_patch_layout"]
        )
    assert not computed


def test_the_tower_itself_refuses_counts_alone(model, inputs, computed):
    pixels, grids, _, counts = (inputs[name] for name in VISUAL)
    with pytest.raises(InvalidLayoutError, match="image_patch_counts without image_patch_layout"):
        model.model.visual(pixels, grid_thw=grids, patch_counts=counts)
    with pytest.raises(InvalidLayoutError, match="image_patch_counts without image_patch_layout"):
        model.get_image_features(pixels, grids, image_patch_counts=counts)
    with pytest.raises(InvalidLayoutError, match="image_patch_counts without image_patch_layout"):
        model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], grids, image_patch_counts=counts)
    assert not computed


def test_concatenating_an_earlier_releases_output_is_refused(model, processor, prompt, photos, computed):
    """The counts are then those of one image, and the layouts those of both."""
    two = [
        processor(images=photo, text=prompt(), return_tensors="pt", images_kwargs=SELECTIONS["dropping"])
        for photo in (photos[1], photos[1])
    ]
    both = {name: torch.cat([one[name] for one in two]) for name in two[0]}
    with torch.no_grad():
        assert len(model(**both).logits) == 2
    computed.clear()
    both["image_patch_counts"] = two[0]["image_patch_counts"]
    with pytest.raises(InvalidLayoutError, match=r"image_patch_counts \[\d+\] for 2 image grid\(s\)"), torch.no_grad():
        model(**both)
    assert not computed


def test_upstreams_own_checks_stay(model, inputs):
    """What upstream refuses, it refuses in its own words."""
    with pytest.raises(ValueError, match="not_an_argument"):
        model.generate(**inputs, not_an_argument=1)
    with pytest.raises(ValueError, match="both pixel_values"):
        model(**inputs, mm_encoder_outputs={"image": None})


@pytest.mark.parametrize("text", ["Describe this image", "<image>\nDescribe this image"])
def test_a_prompt_without_placeholders(text, model, processor, half_plain, computed):
    """Refused by newer processors of upstream; with older ones, by the model."""
    with pytest.raises(ValueError), torch.no_grad():
        model(**processor(images=half_plain, text=text, return_tensors="pt", images_kwargs=BUDGET))
    assert not computed


@pytest.mark.parametrize("name", ["image_cu_seqlens", "image_max_seqlen", "image_position_ids"])
def test_what_follows_from_the_layout_is_not_taken_from_elsewhere(model, inputs, name):
    with pytest.raises(ValueError, match=f"{name} with image_patch_layout: .* leave it out"):
        model(**inputs, **{name: torch.tensor([0, 4])})
