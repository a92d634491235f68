"""`image_patch_parts`: the coarse patches at full resolution, made where they are asked for."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from tests.transformers_apt.models.references import BUDGET, SELECTIONS, layouts_of

both_backends = pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
PARTS = "image_patch_parts"


def parts_by_hand(output, full_rows):
    """Upstream's rows of the base cells under each coarse patch, one patch after the other, row by row."""
    found, start = [], 0
    for layout in layouts_of(output):
        h, w = layout.grid
        # upstream's order: 2 × 2 cells after each other
        place = {
            (row, col): start + ((row // 2) * (w // 2) + col // 2) * 4 + row % 2 * 2 + col % 2
            for row, col in np.ndindex(h, w)
        }
        for row, col, size in layout.patches.tolist():
            if size > 1:
                found += [full_rows[place[row + down, col + right]] for down, right in np.ndindex(size, size)]
        start += h * w
    return torch.stack(found)


@pytest.mark.every_family
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_parts_are_upstreams_rows_to_the_bit(processor, photos, half_plain, selection):
    image_processor = processor.image_processor
    images = [half_plain, *photos]
    without = image_processor(images=images, return_tensors="pt", **selection)
    output = image_processor(images=images, return_tensors="pt", patch_parts=True, **selection)
    whole = image_processor(images=images, return_tensors="pt", patch_selection_method="off")
    assert torch.equal(output[PARTS], parts_by_hand(output, whole["pixel_values"]))
    assert set(output) - set(without) == {PARTS}
    assert all(torch.equal(output[name], without[name]) for name in without)


@both_backends
def test_both_backends_and_both_forms_of_packing(backend, half_plain, photos):
    """Floating-point pixels go through the plain form, bytes through the compiled one."""
    images = [np.array(half_plain), np.array(half_plain)[:, ::-1].copy()]
    settings = {**BUDGET, "patch_parts": True, "return_tensors": "pt"}
    output = backend()(images=images, **settings)
    floats = backend()(images=[image.astype(np.float32) for image in images], do_resize=False, **settings)
    assert torch.equal(floats["image_patch_layout"], output["image_patch_layout"])
    assert torch.equal(floats[PARTS], output[PARTS])
    alone = [backend()(images=image, **settings) for image in images]
    assert torch.equal(torch.cat([one[PARTS] for one in alone]), output[PARTS]), "calls cannot be joined"
    arrays = backend()(images=images, **{**settings, "return_tensors": None})
    assert type(arrays[PARTS]) is type(arrays["pixel_values"])


@both_backends
def test_who_does_not_ask_gets_none(backend, half_plain):
    image_processor = backend()
    assert PARTS not in image_processor(images=half_plain)
    assert PARTS not in image_processor(images=half_plain, patch_parts=True, patch_selection_method="off")
    assert "patch_parts" not in image_processor.to_dict()
    image_processor.patch_parts = True
    assert PARTS in image_processor(images=half_plain)
    assert PARTS not in image_processor(images=half_plain, patch_parts=False)
    assert PARTS in backend(patch_parts=True)(images=half_plain)


@both_backends
def test_without_a_coarse_patch_there_is_no_row(backend, half_plain):
    settings = {"patch_selection_method": "budget", "alpha": 1.0, "patch_parts": True, "return_tensors": "pt"}
    output = backend()(images=half_plain, **settings)
    assert output[PARTS].shape == (0, output["pixel_values"].shape[1])


def test_fit_takes_them_from_the_picture_that_it_chose(processor, half_plain):
    settings = {"patch_selection_method": "fit", "alpha": 0.2, "patch_parts": True}
    output = processor.image_processor(images=half_plain, return_tensors="pt", **settings)
    assert int(output["image_grid_thw"].prod()) < 12 * 16, "the picture was meant to be made smaller"
    sizes = output["image_patch_layout"][:, 2]
    assert len(output[PARTS]) == int((sizes[sizes > 1] ** 2).sum()) > 0


def test_the_setting_is_saved_with_the_processor(processor, prompt, half_plain, tmp_path, monkeypatch):
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    processor.save_pretrained(tmp_path / "stock")
    assert "patch_parts" not in (tmp_path / "stock" / "processor_config.json").read_text(encoding="utf-8")
    assert PARTS not in processor.model_input_names
    assert PARTS in processor(**call, images_kwargs={"patch_parts": True})
    assert PARTS in processor.model_input_names
    processor.image_processor.patch_parts = True
    processor.save_pretrained(tmp_path / "parts")
    saved = json.loads((tmp_path / "parts" / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["image_processor"]["patch_parts"] is True
    loaded = AutoProcessor.from_pretrained(tmp_path / "parts")
    assert PARTS in loaded.model_input_names
    assert PARTS in loaded(**call)
    monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", '{"patch_parts": true}')
    assert PARTS in AutoProcessor.from_pretrained(tmp_path / "stock")(**call)


@pytest.mark.parametrize("value", [1, "yes", [True]])
def test_what_is_neither_true_nor_false_is_refused(value, half_plain):
    with pytest.raises(TypeError, match=r"patch_parts=.*expected True or False"):
        Qwen2VLImageProcessor(patch_parts=value)
    with pytest.raises(TypeError, match=r"patch_parts=.*expected True or False"):
        Qwen2VLImageProcessor()(images=half_plain, patch_parts=value)
