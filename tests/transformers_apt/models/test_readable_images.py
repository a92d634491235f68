"""Which images patches can be chosen on: grey levels, whatever resizing makes of them, in one or three channels."""

import logging

import numpy as np
import pytest
import torch
from skimage import data
from sklearn.datasets import load_sample_image
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

BACKENDS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
AS_THEY_ARE = {"input_data_format": "channels_first", "do_resize": False}  # PIL resizes grey levels only
PHOTOS = {
    "astronaut": data.astronaut,
    "coffee": data.coffee,
    "rocket": data.rocket,
    "retina": lambda: data.retina()[:700, :700],
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
    "checkerboard": lambda: np.repeat(
        np.kron(np.indices((20, 20)).sum(0) % 2 * 255, np.ones((17, 17)))[..., None], 3, 2
    ),
}
both_backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def messages(caplog):
    logger = transformers_logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")
    type(logger).warning_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger=logger.name):
        yield lambda: [r.getMessage() for r in caplog.records if "patches cannot be chosen" in r.getMessage()]


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("unit", [255, 1])
def test_floats_keep_their_budget_however_far_resizing_overshoots(name, unit, messages):
    pixels = np.asarray(PHOTOS[name](), np.uint8)
    floats = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / (255 / unit)
    options = {"do_rescale": unit == 255}
    for size in (224 * 224, 640 * 640):  # down, and up, which overshoots most
        limits = {"shortest_edge": size, "longest_edge": size}
        found = Qwen2VLImageProcessor(size=limits)(images=floats, return_tensors="pt", **BUDGET, **options)
        full = int(found["image_grid_thw"].prod())
        assert len(found["pixel_values"]) <= round(0.3 * full) + 1
        off = Qwen2VLImageProcessor(size=limits)(
            images=floats, return_tensors="pt", patch_selection_method="off", **options
        )
        order = torch.as_tensor(found["image_patch_layout"])[:, 2] == 1
        base = found["pixel_values"][order]
        assert all((off["pixel_values"] == row).all(1).any() for row in base[:5]), "pixels themselves are not clamped"
    assert not messages()


@both_backends
def test_what_cannot_be_read_is_said_once(backend, messages):
    random = np.random.default_rng(0)
    image_processor = backend(**BUDGET)
    for _ in range(30):
        image = random.normal(0, random.uniform(50, 5000), (3, 56, 56)).astype(np.float32)
        found = image_processor(images=image, **AS_THEY_ARE, return_tensors="pt")
        assert len(found["pixel_values"]) == int(found["image_grid_thw"].prod())
        assert image_processor.last_budget_info == [None]
    assert len(set(messages())) == 1


@both_backends
def test_an_unreadable_image_forgets_what_the_last_one_did(backend, half_plain):
    image_processor = backend(**BUDGET)
    image_processor(images=half_plain)
    assert image_processor.last_budget_info[0]["alpha"] == 0.3
    unreadable = np.full((3, 56, 56), 9000.0, np.float32)
    unreadable[0, 0, 0] = -9000
    image_processor(images=unreadable, **AS_THEY_ARE)
    assert image_processor.last_budget_info == [None]
    both = [np.asarray(half_plain).transpose(2, 0, 1).astype(np.float32), unreadable]
    image_processor(images=both, **AS_THEY_ARE)
    assert image_processor.last_budget_info[0]["alpha"] == 0.3 and image_processor.last_budget_info[1] is None


@both_backends
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused(backend, bad):
    image = np.full((3, 56, 56), 9.0, np.float32)
    image[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"image 0 holds NaN or infinite pixels.*nan_to_num"):
        backend(**BUDGET)(images=image, input_data_format="channels_first")


# -------------------------------------------------------------------- channels


def channels(count, backend):
    options = {"image_mean": [0.5] * count, "image_std": [0.5] * count, "do_convert_rgb": False}
    image = np.random.default_rng(count).integers(0, 255, (count, 112, 84), np.uint8)
    return backend(**options), {"images": image, "input_data_format": "channels_first"}


@both_backends
@pytest.mark.parametrize("count", [2, 4, 5])
def test_more_channels_work_as_stock_and_are_refused_when_asked_for(backend, count, upstream):
    image_processor, call = channels(count, backend)
    with upstream():
        try:
            expected = channels(count, backend)[0](**call, return_tensors="pt")
        except Exception as error:
            expected = error
    if isinstance(expected, Exception):
        with pytest.raises(type(expected)):
            image_processor(**call, return_tensors="pt")
        return
    found = image_processor(**call, return_tensors="pt")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match=rf"images of {count} channels with adaptive patches: expected 1 or 3"):
        image_processor(**call, **BUDGET)


@both_backends
def test_one_channel_works(backend):
    image_processor, call = channels(1, backend)
    found = image_processor(**call, return_tensors="pt", **BUDGET)
    assert found["pixel_values"].shape[1] == 2 * 14 * 14 and "image_patch_layout" in found


@both_backends
@pytest.mark.parametrize("count", [1, 3])
def test_statistics_of_another_number_of_channels_are_refused_as_on_stock(backend, count, upstream):
    image = np.random.default_rng(0).integers(0, 255, (count, 112, 84), np.uint8)
    options = {"image_mean": [0.5] * (4 - count), "image_std": [0.5] * (4 - count), "do_convert_rgb": False}
    call = {"images": image, "input_data_format": "channels_first", "return_tensors": "pt"}
    with upstream():
        try:
            expected = backend(**options)(**call)
        except Exception as error:
            expected = error
    if isinstance(expected, Exception):
        with pytest.raises(type(expected)):
            backend(**options)(**call)
    else:
        assert torch.equal(backend(**options)(**call)["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match=rf"image_mean has {4 - count} values for images of {count} channel"):
        backend(**options)(**call, **BUDGET)
