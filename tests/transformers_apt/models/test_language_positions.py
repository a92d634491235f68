"""The language models read the positions of mixed-scale images, whatever they make of them, and of no padding."""

import pytest
import torch

from tests.transformers_apt.models.references import visual

pytestmark = pytest.mark.every_family

JOINT = {"patch_selection_method": "joint", "alpha": 0.4, "importance_method": "upsample_mse"}


def logits(model, batch, **more):
    model.model.rope_deltas = None
    with torch.no_grad():
        return model(**batch, **more).logits


def positions_of(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "pixel_values"}
    return model.model.get_rope_index(**inputs)[0]


def test_positions_decide_the_answer_on_every_axis(model, inputs):
    """Time, height and width: an image's tokens moved along one of them give other logits."""
    expected, positions = logits(model, inputs), positions_of(model, inputs)
    assert torch.equal(logits(model, inputs, position_ids=positions), expected)
    is_image = inputs["mm_token_type_ids"] == 1
    for axis in range(3):
        moved = positions.clone()
        moved[axis][is_image] += torch.arange(int(is_image.sum())) % 3
        assert not torch.allclose(logits(model, inputs, position_ids=moved), expected, atol=1e-3), axis


def test_the_layout_alone_decides_the_answer(model, inputs, monkeypatch):
    """The tower's features held fixed, the same tokens at the places of another tiling give other logits."""
    with torch.no_grad():
        encoded = {"image": model.get_image_features(**visual(inputs), return_dict=True)}
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    expected = logits(model, rest, mm_encoder_outputs=encoded)
    row, col, size = rest["image_patch_layout"].unbind(1)
    width = int(rest["image_grid_thw"][0, 2]) // 4 * 4  # whole cells of the largest patch
    col = torch.where(col < width, width - col - size, col)
    mirrored = torch.stack([row, col, size], dim=1)
    order = torch.argsort((row // 2 * 1000 + col // 2) * 4 + row % 2 * 2 + col % 2)
    assert not torch.equal(mirrored[order], rest["image_patch_layout"])
    found = logits(model, {**rest, "image_patch_layout": mirrored[order]}, mm_encoder_outputs=encoded)
    assert not torch.allclose(found, expected, atol=1e-3)


@pytest.mark.every_family(moe=True)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("drop_tolerance", [None, 30])
def test_a_batch_says_what_its_prompts_say_alone(drop_tolerance, side, model, processor, prompt, half_plain, photos):
    """Mixed layouts, one of them with two images; padding is masked in attention and in linear attention."""
    images = [[half_plain], [photos[2], photos[0]], [photos[1]]]
    texts = [prompt(1), prompt(2, text="What is the difference between the two?"), prompt(1, text="And this one?")]
    settings = {"return_tensors": "pt", "images_kwargs": {**JOINT, "drop_tolerance": drop_tolerance}}
    batch = processor(images=images, text=texts, padding=True, padding_side=side, **settings)
    kept = batch["attention_mask"].bool()
    assert not kept.all() and bool(kept[:, 0 if side == "right" else -1].all())
    together = logits(model, batch)
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = logits(model, processor(images=image, text=text, **settings))
        torch.testing.assert_close(together[row][kept[row]], alone[0], rtol=1e-3, atol=1e-3)
