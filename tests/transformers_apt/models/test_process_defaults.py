"""Whatever device and dtype a process takes by default, and in whatever shape pixels come: it goes as upstream."""

import pytest
import torch
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

METHODS = ({"patch_selection_method": "v1"}, {"patch_selection_method": "joint", "alpha": 0.4})


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: settings["patch_selection_method"])
def test_image_processor_under_another_default_device(backend, settings, half_plain):
    """The device "meta" stands for any but the CPU: it holds no values, so whatever lands on it by mistake shows."""
    with torch.device("meta"):
        off = backend()(half_plain, return_tensors="pt", patch_selection_method="off")
    if off["pixel_values"].is_meta:
        pytest.skip("this transformers puts the images themselves on the default device")
    fresh = backend(image_mean=[0.4, 0.5, 0.6])  # nothing is known of this normalisation yet
    with torch.device("meta"):
        inside = fresh(half_plain, return_tensors="pt", **settings)
    after = fresh(half_plain, return_tensors="pt", **settings)
    assert inside["pixel_values"].device.type == "cpu"
    assert torch.equal(inside["pixel_values"], after["pixel_values"])
    assert torch.equal(inside["image_patch_layout"], after["image_patch_layout"])


@pytest.mark.every_family
def test_model_under_another_default_device(model, inputs):
    expected = model(**inputs).logits
    model.model.rope_deltas = None
    with torch.device("meta"):
        found = model(**inputs).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
def test_image_processor_under_another_default_dtype(backend, dtype, default_dtype, half_plain):
    expected = backend()(half_plain, return_tensors="pt", **METHODS[1])
    default_dtype(dtype)
    found = backend(image_mean=[0.4, 0.5, 0.6])(half_plain, return_tensors="pt", **METHODS[1])
    again = backend()(half_plain, return_tensors="pt", **METHODS[1])
    assert found["pixel_values"].dtype == again["pixel_values"].dtype == torch.float32
    assert torch.equal(again["pixel_values"], expected["pixel_values"])


@pytest.mark.every_family
@pytest.mark.parametrize("images_kwargs", [{"patch_selection_method": "off"}, METHODS[1]], ids=["off", "joint"])
def test_pixels_of_any_shape_that_the_tower_takes_for_rows(model, processor, prompt, half_plain, images_kwargs):
    batch = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=images_kwargs)
    expected = model(**batch).logits
    rows = batch.pop("pixel_values")
    patch_size = model.config.vision_config.patch_size
    for pixels in (rows[None], rows.view(-1, 3, 2, patch_size, patch_size)):
        model.model.rope_deltas = None
        assert torch.equal(model(**batch, pixel_values=pixels).logits, expected)
        answer = model.generate(**batch, pixel_values=pixels, max_new_tokens=2, do_sample=False)
        assert answer.shape[1] == batch["input_ids"].shape[1] + 2
