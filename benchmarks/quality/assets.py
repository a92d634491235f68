"""Photographs and typefaces, found inside pip packages, and which of them training may see.

`test` assets appear in no training image. A typeface is held out with its whole family: every weight of it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFont

Split = Literal["train", "test"]

_PHOTOS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "skimage": (
            "data/astronaut.png",
            "data/brick.png",
            "data/camera.png",
            "data/cell.png",
            "data/grass.png",
            "data/ihc.png",
            "data/moon.png",
            "data/motorcycle_left.png",
            "data/rocket.jpg",
        ),
        "sklearn": ("datasets/images/flower.jpg",),
    },
    "test": {
        "skimage": (
            "data/chelsea.png",
            "data/coffee.png",
            "data/gravel.png",
            "data/hubble_deep_field.jpg",
            "data/retina.jpg",
        ),
        "sklearn": ("datasets/images/china.jpg",),
    },
}

_MPL = "mpl-data/fonts/ttf/"
_FONTS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "matplotlib": (
            _MPL + "DejaVuSans.ttf",
            _MPL + "DejaVuSans-Bold.ttf",
            _MPL + "DejaVuSans-Oblique.ttf",
            _MPL + "DejaVuSansMono.ttf",
            _MPL + "DejaVuSansMono-Bold.ttf",
            _MPL + "DejaVuSerif.ttf",
            _MPL + "DejaVuSerif-Bold.ttf",
            _MPL + "cmss10.ttf",
            _MPL + "cmr10.ttf",
            _MPL + "cmb10.ttf",
        ),
        "font_lato": ("files/Lato-Regular.ttf", "files/Lato-Bold.ttf", "files/Lato-Italic.ttf"),
        "font_source_sans_pro": ("files/SourceSansPro-Regular.ttf", "files/SourceSansPro-Bold.ttf"),
        "font_source_serif_pro": ("files/SourceSerifPro-Regular.ttf", "files/SourceSerifPro-Semibold.ttf"),
        "font_caladea": ("files/Caladea-Regular.ttf", "files/Caladea-Bold.ttf"),
        "font_manrope": ("files/Manrope-Medium.ttf", "files/Manrope-ExtraBold.ttf"),
        "font_fredoka_one": ("files/FredokaOne-Regular.ttf",),
        "font_fjallaone": ("files/FjallaOne-Regular.ttf",),
    },
    "test": {
        "matplotlib": (_MPL + "STIXGeneral.ttf", _MPL + "STIXGeneralBol.ttf", _MPL + "cmtt10.ttf"),
        "font_roboto": ("files/Roboto-Regular.ttf", "files/Roboto-Bold.ttf", "files/Roboto-Medium.ttf"),
        "font_hanken_grotesk": ("files/HankenGrotesk-Regular.otf", "files/HankenGrotesk-SemiBold.otf"),
    },
}


def _locate(package: str, name: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the package {package!r} is not installed, expected it for {name!r}: "
            "run `pip install 'transformers-apt[bench]'`"
        )
    path = Path(next(iter(spec.submodule_search_locations)), name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{package!r} has no file {name!r}, expected the version that constraints.txt pins: install that one"
        )
    return path


def _paths(table: dict[str, tuple[str, ...]]) -> tuple[Path, ...]:
    return tuple(_locate(package, name) for package, names in table.items() for name in names)


def _check(split: str) -> None:
    if split not in _PHOTOS:
        raise ValueError(f"split is {split!r}, expected one of {sorted(_PHOTOS)}: pass 'train' or 'test'")


@cache
def photos(split: Split) -> tuple[Image.Image, ...]:
    """The photographs of a split, RGB, longest side at most 800 pixels."""
    _check(split)
    found = []
    for path in _paths(_PHOTOS[split]):
        image = Image.open(path).convert("RGB")
        image.thumbnail((800, 800), Image.Resampling.LANCZOS)
        found.append(image)
    return tuple(found)


@cache
def font_paths(split: Split) -> tuple[Path, ...]:
    """The typeface files of a split."""
    _check(split)
    return _paths(_FONTS[split])


@cache
def font(path: Path, px: int) -> ImageFont.FreeTypeFont:
    """A typeface at `px` pixels per em, cached: opening a file costs more than drawing a word."""
    return ImageFont.truetype(str(path), px, layout_engine=ImageFont.Layout.BASIC)


def photo_crop(rng: np.random.Generator, split: Split, height: int, width: int) -> Image.Image:
    """A random crop of a random photo, at 0.6 to 1.4 of its size where it allows, perhaps mirrored or dimmed."""
    images = photos(split)
    image = images[rng.integers(len(images))]
    scale = max(rng.uniform(0.6, 1.4), width / image.width, height / image.height)
    w, h = min(image.width, width / scale), min(image.height, height / scale)
    left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
    crop = image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h), reducing_gap=2)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gain = rng.uniform(0.6, 1.1)
    return crop.point(lambda value: min(255, int(value * gain)))
