"""From images to `pixel_values`, `image_patch_layout` and placeholders, whatever kind of image comes in."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

from apt_code import patch_packing
from tests.transformers_apt.models.references import VISUAL, layouts_of, naive_rows

BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
OFF = {"patch_selection_method": "off"}
both_backends = pytest.mark.parametrize("backend", BACKENDS)
every_method = pytest.mark.parametrize(
    "settings", [{}, {"patch_selection_method": "v2", "alpha": 0.5}, BUDGET], ids=["v1", "v2", "budget"]
)


@every_method
@both_backends
def test_rows_are_area_averages(backend, settings, half_plain):
    image_processor = backend()
    output = image_processor(images=half_plain, return_tensors="pt", **settings)
    (layout,) = layouts_of(output)
    assert layout.grid == (12, 16) and len(layout.patches_by_size) >= 2
    assert output["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(
        output["pixel_values"].double(), naive_rows(half_plain, layout, image_processor), atol=1e-5, rtol=0
    )


@every_method
def test_the_backends_agree_on_the_same_pixels(settings, half_plain):
    fast, slow = (
        backend()(images=half_plain, do_resize=False, return_tensors="pt", **settings) for backend in BACKENDS
    )
    assert torch.equal(fast["image_patch_layout"], slow["image_patch_layout"])
    assert torch.equal(fast["image_grid_thw"], slow["image_grid_thw"])
    torch.testing.assert_close(fast["pixel_values"], slow["pixel_values"], atol=1e-5, rtol=0)


@every_method
@both_backends
def test_an_image_does_not_see_its_neighbours(backend, settings, photos, half_plain):
    images = [*photos, half_plain, photos[0].rotate(180)]  # the last one has the size of the first
    batch = backend()(images=images, return_tensors="pt", **settings)
    lengths = [layout.num_patches for layout in layouts_of(batch)]
    for image, rows in zip(images, batch["pixel_values"].split(lengths), strict=True):
        alone = backend()(images=image, return_tensors="pt", **settings)
        assert torch.equal(alone["pixel_values"], rows)
    ungrouped = backend()(images=images, return_tensors="pt", disable_grouping=True, **settings)
    for name, value in batch.items():
        assert torch.equal(ungrouped[name], value)


def test_only_kept_patches_are_normalised(half_plain, photos, monkeypatch):
    counted = []
    original = Qwen2VLImageProcessor.rescale_and_normalize

    def count(self, images, *args, **kwargs):
        counted.append(tuple(images.shape))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(Qwen2VLImageProcessor, "rescale_and_normalize", count)
    monkeypatch.setattr(patch_packing, "can_compile", lambda images: False)
    output = Qwen2VLImageProcessor()(images=[half_plain, *photos], **BUDGET)
    assert sum(shape[0] for shape in counted) == len(output["pixel_values"])
    assert {shape[1:] for shape in counted} == {(3, 14, 14)}


def test_compiled_packing_normalises_values_not_pixels(half_plain, monkeypatch):
    counted = []
    original = Qwen2VLImageProcessor.rescale_and_normalize

    def count(self, images, *args, **kwargs):
        counted.append(tuple(images.shape))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr(Qwen2VLImageProcessor, "rescale_and_normalize", count)
    Qwen2VLImageProcessor()(images=half_plain, **BUDGET)
    assert counted == [(1, 3, 1, sum(255 * size**2 + 1 for size in (1, 2, 4)))]


def test_only_kept_patches_are_normalised_by_pil(half_plain, monkeypatch):
    counted = {"rescale": 0, "normalize": 0}
    for name in counted:
        original = getattr(Qwen2VLImageProcessorPil, name)

        def count(self, image, *args, name=name, original=original, **kwargs):
            counted[name] += image.size
            return original(self, image, *args, **kwargs)

        monkeypatch.setattr(Qwen2VLImageProcessorPil, name, count)
    monkeypatch.setattr(patch_packing, "can_compile", lambda images: False)
    output = Qwen2VLImageProcessorPil()(images=half_plain, **BUDGET)
    pixels = len(output["pixel_values"]) * 3 * 14 * 14
    assert counted == {"rescale": pixels, "normalize": pixels}


def kinds_of_image(photo):
    sideways = photo.copy()
    sideways.getexif()[0x0112] = 6  # turn by 90 degrees: upstream's image processors leave that to the loader
    channels_first = np.asarray(photo).transpose(2, 0, 1)
    return {
        "rgba": photo.convert("RGBA"),
        "grey": photo.convert("L"),
        "palette": photo.convert("P"),
        "grey and alpha": photo.convert("LA"),
        "one bit": photo.convert("1"),
        "exif": sideways,
        "numpy, channels last": np.array(photo),
        "numpy, channels first": channels_first.copy(),
        "uint8 tensor": torch.tensor(channels_first),
        "float tensor": torch.tensor(channels_first).float(),
    }


@both_backends
@pytest.mark.parametrize("kind", kinds_of_image(Image.new("RGB", (28, 28))))
def test_every_kind_of_image(backend, kind, photos, upstream):
    image = kinds_of_image(photos[1])[kind]
    with upstream():
        expected = backend()(images=image, return_tensors="pt")
    everything = backend()(images=image, return_tensors="pt", patch_selection_method="budget", alpha=1.0)
    assert torch.equal(everything["pixel_values"], expected["pixel_values"])
    assert torch.equal(everything["image_grid_thw"], expected["image_grid_thw"])
    fewer = backend()(images=image, return_tensors="pt", **BUDGET)
    assert len(fewer["pixel_values"]) == len(fewer["image_patch_layout"]) < len(expected["pixel_values"])
    if isinstance(image, Image.Image):
        as_rgb = backend()(images=image.convert("RGB"), return_tensors="pt", **BUDGET)
        assert torch.equal(fewer["image_patch_layout"], as_rgb["image_patch_layout"])


@both_backends
def test_pixels_between_0_and_1(backend, half_plain):
    """Pixels that are rescaled already mean the same image: the same tiling, the same rows."""
    grey_levels = torch.tensor(np.asarray(half_plain)).permute(2, 0, 1)
    expected = backend()(images=grey_levels, do_resize=False, return_tensors="pt", **BUDGET)
    found = backend()(images=grey_levels / 255, do_rescale=False, do_resize=False, return_tensors="pt", **BUDGET)
    assert torch.equal(found["image_patch_layout"], expected["image_patch_layout"])
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)


@both_backends
def test_without_normalisation(backend, half_plain):
    raw = backend()(images=half_plain, do_rescale=False, do_normalize=False, return_tensors="pt", **BUDGET)
    normalised = backend()(images=half_plain, return_tensors="pt", **BUDGET)
    assert torch.equal(raw["image_patch_layout"], normalised["image_patch_layout"])
    assert float(raw["pixel_values"].min()) >= 0 and 200 < float(raw["pixel_values"].max()) <= 255


@both_backends
def test_return_tensors(backend, half_plain):
    kinds = {None: (np.ndarray, torch.Tensor), "np": np.ndarray, "pt": torch.Tensor}
    layouts = []
    for wanted, kind in kinds.items():
        output = backend()(images=half_plain, return_tensors=wanted, **BUDGET)
        assert all(isinstance(value, kind) for value in output.values())
        layouts.append(np.asarray(output["image_patch_layout"]))
        assert layouts[-1].dtype == np.int64
    assert all(np.array_equal(layout, layouts[0]) for layout in layouts)


@pytest.mark.every_family
@pytest.mark.parametrize("settings", [OFF, {}, BUDGET, {"patch_selection_method": "v2", "alpha": 9.0}], ids=str)
@both_backends
def test_number_of_patches_is_exact_or_an_upper_bound(backend, settings, folder, processor, photos, prompt):
    processor.image_processor = backend.from_pretrained(folder, **settings)
    sizes = [(photo.height, photo.width) for photo in photos]
    counted = [processor.image_processor.get_number_of_image_patches(*size) for size in sizes]
    data = processor._get_num_multimodal_tokens(image_sizes=sizes)
    assert data.num_image_patches == counted
    for photo, patches, tokens in zip(photos, counted, data.num_image_tokens, strict=True):
        batch = processor(images=photo, text=prompt(), return_tensors="pt")
        found = (len(batch["pixel_values"]), int((batch["mm_token_type_ids"] == 1).sum()))
        if settings == OFF:
            assert found == (patches, tokens)
        else:
            assert found[0] <= patches and found[1] <= tokens


@pytest.mark.every_family
def test_placeholders_follow_the_tiling(processor, prompt, photos, half_plain):
    """Several images in a prompt, several prompts in a batch, left padding, and any way of nesting the images."""
    images = [photos[0], half_plain, photos[2]]
    texts = [prompt(1), prompt(2, text="Longer than the other one.")]
    batch = processor(images=images, text=texts, return_tensors="pt", padding=True, images_kwargs=BUDGET)
    expected = [layout.num_language_tokens for layout in layouts_of(batch)]
    image_id = processor.image_token_id
    found = [int((ids == image_id).sum()) for ids in batch["input_ids"]]
    assert found == [expected[0], expected[1] + expected[2]]
    assert torch.equal(batch["input_ids"] == image_id, batch["mm_token_type_ids"] == 1)
    assert int(batch["attention_mask"][0, 0]) == 0, "padded on the left"
    nested = processor(
        images=[[photos[0]], [half_plain, photos[2]]], text=texts, return_tensors="pt", padding=True, **BUDGET
    )
    for name, value in batch.items():
        assert torch.equal(nested[name], value)


@pytest.mark.every_family
@pytest.mark.parametrize("tensors", [None, "np", "pt"])
@both_backends
def test_placeholders_whatever_the_tensors(backend, tensors, folder, processor, prompt, half_plain):
    processor.image_processor = backend.from_pretrained(folder, **BUDGET)
    batch = processor(images=half_plain, text=prompt(), return_tensors=tensors)
    tokens = layouts_of(processor(images=half_plain, return_tensors="pt"))[0].num_language_tokens
    assert int((np.asarray(batch["input_ids"]) == processor.image_token_id).sum()) == tokens


@pytest.mark.every_family
def test_without_text(processor, half_plain):
    batch = processor(images=half_plain, return_tensors="pt", **BUDGET)
    assert set(batch) == set(VISUAL)
    assert batch["image_patch_counts"].dtype == torch.int64
    assert batch["image_patch_counts"].tolist() == [len(batch["image_patch_layout"])]


@pytest.mark.every_family
def test_model_input_names(family, processor, prompt, half_plain, upstream):
    """Before a call, what one would return; afterwards, what this one did."""
    with upstream():
        names = processor.model_input_names
    assert processor.model_input_names == [*names, *(VISUAL[2:] if family == "qwen2_vl" else [])]
    batch = processor(images=half_plain, text=prompt(), images_kwargs=BUDGET)
    assert processor.model_input_names == [*names, *VISUAL[2:]]
    assert set(batch) <= set(processor.model_input_names)
    processor(images=half_plain, text=prompt(), images_kwargs=OFF)
    assert processor.model_input_names == names


@pytest.mark.every_family
def test_images_beside_videos(processor, prompt, photos, half_plain, upstream):
    frames = np.stack([np.asarray(photos[0].rotate(angle)) for angle in (0, 10, 20, 30)])
    call = {"images": [half_plain], "videos": [frames], "text": prompt(1, 1), "return_tensors": "pt"}
    with upstream():
        expected = processor(**call)
    batch = processor(**call, images_kwargs=BUDGET)
    for name in ("pixel_values_videos", "video_grid_thw"):
        assert torch.equal(batch[name], expected[name])
    video_tokens = [int((ids["mm_token_type_ids"] == 2).sum()) for ids in (batch, expected)]
    assert video_tokens[0] == video_tokens[1] > 0
    assert len(batch["pixel_values"]) < len(expected["pixel_values"])
    everything = processor(**call, images_kwargs={"patch_selection_method": "budget", "alpha": 1.0})
    for name, value in expected.items():
        assert torch.equal(everything[name], value)


def notices(caplog):
    return [record for record in caplog.records if "Adaptive patches are on for Qwen2-VL" in record.getMessage()]


@pytest.fixture
def new_process(caplog):
    """As in a new process, nothing has been said yet."""
    logging.Logger.warning_once.cache_clear()
    caplog.clear()


@both_backends
def test_the_notice_appears_once(backend, half_plain, new_process, caplog):
    for settings in ({}, {}, BUDGET, {"patch_selection_method": "v2"}):
        backend()(images=half_plain, **settings)
    (notice,) = notices(caplog)
    assert notice.levelno == logging.WARNING and notice.name.startswith("transformers.")
    assert "'patch_selection_method': 'off'" in notice.getMessage() and "TRANSFORMERS_APT=0" in notice.getMessage()


@both_backends
def test_no_notice_for_off(backend, half_plain, new_process, caplog):
    backend()(images=half_plain, **OFF)
    backend(**OFF)(images=half_plain)
    assert not notices(caplog)


def test_the_notice_can_be_silenced(half_plain, new_process, caplog):
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        Qwen2VLImageProcessor()(images=half_plain)
    finally:
        transformers_logging.set_verbosity(verbosity)
    assert not notices(caplog)
