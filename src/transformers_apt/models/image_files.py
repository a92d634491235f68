"""Images in files: which files they are, and how one is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
)

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What PIL raises at files that are no images, or damaged, or too large."""


def image_files(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Those of the paths in a folder that are image files by their names, and neither hidden nor in a hidden folder.

    Raises:
        ValueError: there is none.
    """
    named = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
    seen = (path for path in named if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    found = [path for path in seen if os.path.isfile(path)]
    if not found:
        raise ValueError(f"{folder} holds no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def load_photo(path: Path) -> Image.Image:
    """The image to look at, RGB and upright.

    Raises:
        ValueError: not a readable image.
    """
    from transformers.image_utils import load_image

    try:
        photo = load_image(_in_bytes(Image.open(path)))  # turns a phone's upright, as upstream does
        return photo.convert("RGB")
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); expected a JPEG, PNG or the like") from error


def _in_bytes(image: Image.Image) -> Image.Image:
    """16 bits a pixel become 8; PIL's own conversion makes white of all that is brighter than 255.

    Raises:
        ValueError: numbers of which nobody says what white is.
    """
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not is_16_bit:
        raise ValueError(f"its pixels are numbers of mode {image.mode}, not grey levels")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if is_16_bit else image
