"""Cells that are left out: what comes of both tolerances between image processor and model, in every family."""

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from tests.transformers_apt.models.references import SELECTIONS, VISUAL, layouts_of, naive_rows
from transformers_apt import image_layouts

RULES = {
    "v1": {"importance_method": "upsample_mse", "thresholds": [16, 16]},
    "v2": {"alpha": 1.0},
    "budget": {"alpha": 0.3},
    "joint": {"alpha": 0.3, "importance_method": "upsample_mse"},
}
every_rule = pytest.mark.parametrize(
    "settings", [{"patch_selection_method": name, **more} for name, more in RULES.items()], ids=list(RULES)
)
both_backends = pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
TOLERANCE = 30
PREDICTING = {"predict_tolerance": 100}  # so much that a small photo loses some
both_tolerances = pytest.mark.parametrize("tolerance", [{"drop_tolerance": TOLERANCE}, PREDICTING], ids=str)


@pytest.fixture(scope="module")
def images(half_plain, photos):
    """Sides of whole cells, so that nothing is resized and both backends see the same pixels."""
    return [half_plain, photos[1], photos[2].crop((0, 0, 280, 112))]


@both_backends
@every_rule
@both_tolerances
def test_rows_are_those_of_the_layouts(backend, settings, tolerance, images):
    image_processor = backend(**settings, **tolerance)
    output = image_processor(images=images, return_tensors="pt")
    layouts = layouts_of(output)
    assert output["image_patch_counts"].tolist() == [len(layout) for layout in layouts]
    assert any(layout.dropped_cells for layout in layouts)
    for image, layout, rows in zip(
        images, layouts, output["pixel_values"].split(output["image_patch_counts"].tolist()), strict=True
    ):
        expected = naive_rows(image, layout, image_processor)
        torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-5)


@every_rule
@both_tolerances
def test_both_backends_and_every_company_choose_the_same(settings, tolerance, images):
    settings = {**settings, **tolerance, "return_tensors": "pt"}
    together = Qwen2VLImageProcessor()(images=images, **settings)
    pil = Qwen2VLImageProcessorPil()(images=images, **settings)
    alone = [Qwen2VLImageProcessor()(images=image, **settings) for image in images]
    same_shape = Qwen2VLImageProcessor()(images=[images[0], images[0].rotate(180)], **settings)
    joined = {name: torch.cat([one[name] for one in alone]) for name in VISUAL}
    for name in VISUAL:
        assert torch.equal(joined[name], together[name]), name
        torch.testing.assert_close(pil[name], together[name])
    assert torch.equal(layouts_of(same_shape)[0].patches, layouts_of(together)[0].patches)


@both_backends
@every_rule
def test_without_a_tolerance_only_the_counts_are_new(backend, settings, images):
    plain = backend(**settings)(images=images, return_tensors="np")
    off = backend(**settings, drop_tolerance="off", predict_tolerance="off")(images=images, return_tensors="np")
    assert set(plain) == set(VISUAL) == set(off)
    assert all(np.array_equal(plain[name], off[name]) for name in VISUAL)
    whole = image_layouts({name: plain[name] for name in VISUAL if name != "image_patch_counts"})
    assert [len(layout) for layout in whole] == plain["image_patch_counts"].tolist()


@both_backends
@both_tolerances
def test_the_budget_info_says_how_many_were_left_out(backend, tolerance, images):
    image_processor = backend(patch_selection_method="budget", alpha=0.3)
    image_processor(images=images)
    plain = image_processor.last_budget_info
    output = image_processor(images=images, return_tensors="pt", **tolerance)
    infos, kept = image_processor.last_budget_info, output["image_patch_counts"].tolist()
    assert [info["actual"] - info["dropped"] for info in infos] == kept
    assert [{name: value for name, value in info.items() if name != "dropped"} for info in infos] == plain
    image_processor(images=images, patch_selection_method="v1", **tolerance)
    assert image_processor.last_budget_info == [None] * 3


def test_an_image_that_cannot_be_read_keeps_every_cell(images):
    image_processor = Qwen2VLImageProcessor(patch_selection_method="budget", alpha=0.3, drop_tolerance=TOLERANCE)
    sixteen_bits = torch.from_numpy(np.asarray(images[0]).astype(np.int32) * 200).permute(2, 0, 1)
    readable = torch.from_numpy(np.asarray(images[0]).astype(np.int32)).permute(2, 0, 1)
    output = image_processor(images=[sixteen_bits, readable], return_tensors="pt", do_resize=False)
    whole, some = layouts_of(output)
    assert len(whole) == 12 * 16 and some.dropped_cells
    assert image_processor.last_budget_info[0] is None and image_processor.last_budget_info[1]["dropped"] > 0


@both_tolerances
def test_a_budget_for_everything_with_dropping_saves_something(images, tolerance, caplog):
    settings = {"patch_selection_method": "budget", "alpha": 1.0, **tolerance}
    (layout,) = layouts_of(Qwen2VLImageProcessor()(images=images[0], return_tensors="pt", **settings))
    assert set(layout.patches_by_size) == {1} and layout.dropped_cells
    assert "saves nothing" not in caplog.text


@pytest.mark.every_family(moe=True)
def test_what_stays_stands_where_it_stood(model, processor, prompt, half_plain, photos):
    """The positions of kept cells, of the text between two images and of the text after them are those they had."""
    call = {"images": [half_plain, photos[1]], "text": prompt(2), "return_tensors": "pt"}
    seen = []
    for settings in SELECTIONS.values():
        batch = processor(**call, images_kwargs=settings)
        visual = {name: value for name, value in batch.items() if name != "pixel_values"}
        positions, delta = model.model.get_rope_index(**visual)
        is_image = batch["mm_token_type_ids"][0] == 1
        cells = [tuple(cell) for layout in layouts_of(batch) for cell in layout.language_cells.tolist()]
        starts = [0] + [layouts_of(batch)[0].num_language_tokens]
        tokens = [(i >= starts[1], cell) for i, cell in enumerate(cells)]
        image = dict(zip(tokens, positions[:, 0, is_image].T.tolist(), strict=True))
        seen.append((image, positions[:, 0, ~is_image].tolist(), int(delta) + batch["input_ids"].shape[1]))
    (whole, text, end), (dropped, text_then, end_then) = seen
    assert len(dropped) < len(whole) and dropped.items() <= whole.items()
    assert text_then == text and end_then == end


@pytest.mark.every_family
def test_two_calls_concatenated_are_one(model, processor, prompt, photos):
    settings = {"return_tensors": "pt", "images_kwargs": SELECTIONS["dropping"]}
    calls = [processor(images=photo, text=prompt(), **settings) for photo in (photos[1], photos[1].rotate(180))]
    if len({call["input_ids"].shape[1] for call in calls}) > 1:  # as a collator that pads would
        calls = [calls[0], calls[0]]
    both = {name: torch.cat([call[name] for call in calls]) for name in calls[0]}
    with torch.no_grad():
        found = model(**both).logits
        for row, call in zip(found, calls, strict=True):
            model.model.rope_deltas = None
            torch.testing.assert_close(row, model(**call).logits[0], rtol=1e-3, atol=1e-3)
