"""What the pixels of a call have to be, so that patches can be chosen on them.

Images are `(c, height, width)`, of either backend, before resizing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_code.device.fetching import to_host
from apt_code.importance.common import are_grey_levels
from transformers_apt.models.settings import OFF, logger

Range = tuple[float, float]
"""The smallest and the largest grey level of an image, before resizing; NaN where it holds one."""

BYTES = (torch.uint8, np.uint8)
RANGE_OF_BYTES: Range = (0.0, 255.0)

READABLE_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Those whose extremes torch computes."""


def check(images: Sequence[Any]) -> None:
    """Refuse a call without a pixel, where upstream would divide by zero.

    Raises:
        ValueError: no image, or an image without a pixel.
    """
    if not images:
        raise ValueError("images=[]: expected at least one image; leave the argument out for a prompt of text alone")
    for i, image in enumerate(images):
        if 0 in image.shape:
            raise ValueError(
                f"image {i} has the shape {tuple(image.shape)}: expected at least one pixel; leave the image out"
            )


def grey_scale(arguments: Mapping[str, Any]) -> float:
    """What a floating-point pixel is multiplied by to be a grey level: rescaled pixels are meant to be in [0, 1]."""
    return round(arguments["rescale_factor"] * 255, 9) if arguments["do_rescale"] else 255.0


def not_numbers(images: Sequence[Any]) -> str | None:
    """What is wrong with the first image that holds no real numbers that torch can read, if there is one."""
    for i, image in enumerate(images):
        if image.dtype in BYTES and type(image) in (Tensor, np.ndarray) and not getattr(image, "is_meta", False):
            continue  # nearly all images are such
        if isinstance(image, Tensor):
            good = not (image.is_meta or hasattr(image, "fake_mode") or image.is_complex())
            good = good and (not image.is_floating_point() or image.dtype in READABLE_FLOATS)
        else:
            try:
                good = not torch.from_numpy(np.empty(0, image.dtype)).is_complex()
            except (TypeError, ValueError):  # of a kind, or with an order of bytes, that torch does not know
                good = False
        if not good:
            where = " on the device 'meta'" if isinstance(image, Tensor) and image.is_meta else ""
            return (
                f"image {i} of {image.dtype}{where} with adaptive patches: expected real numbers that torch can read; "
                "convert it to uint8 or float32"
            )
    return None


def ranges_of(images: Sequence[Any], grey_scale: float) -> list[Range]:
    """The range of each image; of bytes it is known without a look, and a GPU is waited for once for all others."""
    ranges = [RANGE_OF_BYTES] * len(images)
    others = [i for i, image in enumerate(images) if image.dtype not in BYTES]
    if not others:
        return ranges
    for i, extremes in zip(others, to_host([_extremes(images[i]) for i in others]), strict=True):
        scale = grey_scale if _is_floating(images[i]) else 1.0
        lowest, highest = extremes.tolist()
        ranges[i] = (lowest * scale, highest * scale)
    return ranges


def _is_floating(image: Any) -> bool:
    return np.issubdtype(image.dtype, np.floating) if isinstance(image, np.ndarray) else image.is_floating_point()


def _extremes(image: Any) -> Tensor:
    """`(2,)`, the smallest and the largest pixel of an image."""
    if isinstance(image, np.ndarray):
        return torch.tensor([float(image.min()), float(image.max())], dtype=torch.float64, device="cpu")
    values = image.detach() if image.is_floating_point() else image.float()  # not every integer type has a maximum
    return torch.stack(values.aminmax())


def not_finite(ranges: Sequence[Range]) -> str | None:
    """The first image with pixels that are no finite numbers, if there is one."""
    for i, values in enumerate(ranges):
        if not all(map(math.isfinite, values)):
            return (
                f"image {i} holds NaN or infinite pixels with adaptive patches: expected finite values in [0, 255] "
                "(or in [0, 1], with the rescaling that fits); replace them (torch.nan_to_num)"
            )
    return None


def are_readable(ranges: Sequence[Range]) -> list[bool]:
    """Whether the values of each image can be grey levels in [0, 255]; says so where they cannot.

    Patches chosen on other values (already rescaled or normalised, 16 bits) would throw the image away without a word.
    """
    readable = [values is RANGE_OF_BYTES or bool(are_grey_levels(*values)) for values in ranges]
    if not all(readable):  # a constant text, so that it is said once
        logger.warning_once(
            "An image holds pixels that cannot be grey levels, expected 0 to 255: patches cannot be chosen on it, and "
            "all are kept. Pass uint8 images, or floats that do_rescale (which assumes 0 to 255) or its absence "
            f"(which assumes 0 to 1) fits; or turn adaptive patches off with patch_selection_method={OFF!r}."
        )
    return readable
