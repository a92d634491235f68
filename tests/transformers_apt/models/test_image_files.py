"""The images that the commands look at."""

import numpy as np
import pytest
from PIL import Image

from transformers_apt.models.image_files import load_photo


@pytest.fixture
def grey(crop):
    return np.asarray(crop.convert("L"))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bits_a_pixel_are_the_same_picture(name, grey, tmp_path):
    """PIL's own conversion made it white."""
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / name)
    photo = load_photo(tmp_path / name)
    assert photo.mode == "RGB" and np.array_equal(np.asarray(photo)[..., 1], grey)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("LA", "png"), ("P", "png"), ("RGBA", "png")])
def test_other_modes_become_rgb(mode, suffix, crop, tmp_path):
    crop.convert(mode).save(tmp_path / f"a.{suffix}")
    expected = crop.convert("L") if mode == "LA" else crop
    difference = np.asarray(load_photo(tmp_path / f"a.{suffix}"), float) - np.asarray(expected.convert("RGB"), float)
    assert abs(difference).mean() < 12


def test_of_an_animation_the_first_picture_is_read(crop, tmp_path):
    crop.save(tmp_path / "a.webp", save_all=True, append_images=[crop.rotate(180)], lossless=True)
    assert np.array_equal(np.asarray(load_photo(tmp_path / "a.webp")), np.asarray(crop))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_that_are_no_grey_levels_are_refused(kind, grey, tmp_path):
    Image.fromarray(grey.astype(kind)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff cannot be read as an image \(its pixels are numbers of mode"):
        load_photo(tmp_path / "a.tiff")


def test_a_picture_too_large_for_pil_is_refused(crop, tmp_path, monkeypatch):
    crop.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image \(Image size"):
        load_photo(tmp_path / "a.png")
