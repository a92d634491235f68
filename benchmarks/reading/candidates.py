"""The settings that are compared, and what each leaves of a picture.

Axis legend: `c` channels, `H W` pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from apt_code.dropping import drop_repeats, inherited_pixels
from apt_code.importance.losses import restoration_errors
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.patch_tokenizer import PatchTokenizer
from benchmarks.reading.pixelprune import prune_pixels
from transformers_apt.models.settings import FIT, METHOD
from transformers_apt.visualizer.view import examine, load_processor

PATCH = 14
CELL = PATCH * MERGE_SIZE


@dataclass(frozen=True)
class Seen:
    """What is left of a picture, and what it costs."""

    image: Image.Image
    patches: int
    tokens: int


@dataclass(frozen=True)
class Rule:
    """A setting on trial.

    Attributes:
        name: in the tables.
        settings: of `PatchTokenizer`, or of an image processor for `fit`; `None` keeps every patch.
        drop, predictable: `drop_tolerance` and `predict_tolerance`; `None` drops nothing.
        area: the part of the area that the picture is first downscaled to.
        tau: PixelPrune's rule instead of a tiling.
    """

    name: str
    settings: Mapping[str, Any] | None = field(default=None, hash=False)
    drop: float | None = None
    predictable: float | None = None
    area: float = 1.0
    tau: float | None = None

    def see(self, picture: Image.Image) -> Seen:
        """What it leaves of a picture whose sides are multiples of 28 px."""
        picture = downscaled(picture, self.area)
        width, height = picture.size
        pixels = np.asarray(picture).transpose(2, 0, 1)  # (H, W, c) -> (c, H, W)
        patches = height // PATCH * (width // PATCH)
        if self.tau is not None:
            kept, seen = prune_pixels(pixels, self.tau, PATCH)
            return Seen(_image(seen), kept * MERGE_SIZE**2, kept)
        if self.settings is None:
            return Seen(picture, patches, patches // MERGE_SIZE**2)
        if self.settings.get(METHOD) == FIT:
            tolerances = {"drop_tolerance": self.drop, "predict_tolerance": self.predictable}
            view = examine(picture, _processor(), **self.settings, **tolerances)
            image, layout, inherited = view.resized, view.layout, view.inherited
        else:
            image = torch.from_numpy(pixels.copy())
            (tiling,) = PatchTokenizer(**self.settings).select_layouts(image[None])
            (layout,) = drop_repeats(image[None], [tiling], PATCH, self.drop, self.predictable)
            inherited = inherited_pixels(image, tiling, PATCH, self.drop, self.predictable)
        seen = restored(image, layout, inherited)
        return Seen(_image(seen), layout.num_patches, layout.num_language_tokens)


@cache
def _processor() -> Any:
    return load_processor()


def restored(image: torch.Tensor, layout: PatchLayout, inherited: torch.Tensor | None = None) -> np.ndarray:
    """`(c, H, W)` uint8: each coarse patch scaled back up, bilinearly and by itself, as smoothly as a downscale is.

    Cells that were left out show those of `inherited`, the pixels or the colour that they repeat.
    """
    seen = image.clone()
    for size in layout.patches_by_size:
        if size == 1:
            continue
        side = PATCH * size
        errors = restoration_errors(image[None], side, size)
        cols = image.shape[-1] // side
        for row, col in (layout.patches[layout.sizes == size, :2] // size).tolist():
            place = (slice(None), slice(row * side, (row + 1) * side), slice(col * side, (col + 1) * side))
            seen[place] = (image[place] - errors[row * cols + col]).round().clamp(0, 255).to(torch.uint8)
    if inherited is not None:
        left_out = (layout.owner == -1).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
        seen = torch.where(left_out, inherited, seen)
    return seen.numpy()


def downscaled(picture: Image.Image, area: float) -> Image.Image:
    """To about this part of the area, with sides that are multiples of 28 px."""
    if area == 1:
        return picture
    size = [max(CELL, round(side * math.sqrt(area) / CELL) * CELL) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _v1(importance: str, *thresholds: float) -> dict[str, Any]:
    chosen = {"thresholds": list(thresholds)} if thresholds else {}
    return {"patch_selection_method": "v1", "importance_method": importance, **chosen}


def _at(method: str, alpha: float) -> dict[str, Any]:
    return {"patch_selection_method": method, "alpha": alpha, "importance_method": "upsample_mse"}


def lossless(
    threshold: float,
    drop: float,
    predictable: float | None = None,
    area: float = 1.0,
    importance: str = "upsample_l4",
) -> Rule:
    """`v1` with a threshold on what averaging loses, flat cells dropped, and predictable ones."""
    name = f"v1 {importance} [{threshold:g}, {threshold:g}], drop {drop:g}"
    name += f", predictable {predictable:g}" if predictable is not None else ""
    name = f"area {area:g}, then {name}" if area != 1 else name
    return Rule(name, _v1(importance, threshold, threshold), drop, predictable, area)


def fit(alpha: float, predictable: float | None = None) -> Rule:
    """The method itself with what it takes of its own accord: `upsample_mse`, flat cells dropped at 2."""
    name = f"fit {alpha:g}" + (f", predictable {predictable:g}" if predictable is not None else "")
    return Rule(name, {METHOD: FIT, "alpha": alpha}, 2, predictable)


OFF = Rule("off")
LADDER = tuple(Rule(f"downscale {area:g}", area=area) for area in (0.85, 0.72, 0.6, 0.5, 0.41, 0.33, 0.26, 0.2))
"""Uniform downscales: what one of any cost reads lies on the line between the two rungs beside it."""

PIXELPRUNE = tuple(Rule(f"PixelPrune's rule, tau {tau:g}", tau=tau) for tau in (0, 4, 20))

RULES = (
    Rule("v1 entropy (default of Qwen2-VL)", _v1("entropy")),
    Rule("v1 upsample_mse [36, 36]", _v1("upsample_mse", 36, 36)),
    Rule("v1 upsample_mse [16, 16]", _v1("upsample_mse", 16, 16)),
    lossless(16, 2, importance="upsample_mse"),
    lossless(16, 2, 4, importance="upsample_mse"),
    lossless(16, 2, 20, importance="upsample_mse"),
    Rule("v1 upsample_l4 [50, 50]", _v1("upsample_l4", 50, 50)),
    lossless(50, 2),
    lossless(50, 2, 4),
    lossless(50, 2, 20),
    lossless(50, 2, area=0.66),
    fit(0.45),
    fit(0.45, 20),
    fit(0.3),
    Rule("joint 0.3 upsample_mse", _at("joint", 0.3)),
    Rule("budget 0.3 upsample_mse", _at("budget", 0.3)),
    *PIXELPRUNE,
)
"""What is reported."""

GRID = (
    *(lossless(threshold, 2) for threshold in (25, 35, 70, 100, 140, 200)),
    *(lossless(50, drop) for drop in (1, 3, 4)),
    *(lossless(50, 2, predictable) for predictable in (8, 12, 30)),
    *(lossless(50, 4, predictable) for predictable in (8, 20)),
    *(lossless(50, 2, area=area) for area in (0.5, 0.58, 0.75)),
)
"""What is chosen from, beside those, on the half of the pictures that is not reported."""


@cache
def by_name() -> dict[str, Rule]:
    return {rule.name: rule for rule in (OFF, *LADDER, *RULES, *GRID)}
