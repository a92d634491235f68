"""One picture of one image that explains itself: to be sent to somebody who has nothing else."""

from __future__ import annotations

import textwrap
from typing import Any

from PIL import Image, ImageDraw

from apt_code.visualization import LEGEND_BACKGROUND, font_of, legend_items
from transformers_apt.models.settings import USED_BY
from transformers_apt.visualizer.view import View

WIDTH = 1920
"""Of the sheet, in pixels."""

GAP = 24
TEXT = 24


def overview(view: View, stats: dict[str, Any], tiling: Image.Image, seen: Image.Image) -> Image.Image:
    """The original, the tiling and what the model sees, with the figures, the settings and the legend.

    Args:
        view: what `examine` returned.
        stats: its `stats_of`.
        tiling: `draw_tiling` of it.
        seen: `reconstruct` of it.
    """
    pictures = [("original", view.original), ("tiling", tiling), ("what the model sees", seen)]
    beside = view.original.width <= 2 * view.original.height  # a wide one would be a strip of a third of the width
    columns = len(pictures) if beside else 1
    width = (WIDTH - GAP * (columns + 1)) // columns
    shown = [(name, _fitted(picture, width)) for name, picture in pictures]
    title, figures = font_of(TEXT * 5 // 4), font_of(TEXT)
    fits = int((WIDTH - 2 * GAP) / figures.getlength("n"))
    lines = [part for line in describe_view(stats) for part in textwrap.wrap(line, fits)]
    top = GAP + TEXT * 2 + len(lines) * TEXT * 3 // 2
    heights = [picture.height + TEXT * 2 for _, picture in shown]
    height = top + (max(heights) if beside else sum(heights) + GAP * 2) + GAP
    sheet = Image.new("RGB", (WIDTH, height + TEXT * 3), LEGEND_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), stats["image"], fill="white", font=title)
    for place, line in enumerate(lines):
        draw.text((GAP, GAP + TEXT * 2 + place * TEXT * 3 // 2), line, fill="white", font=figures)
    left = GAP
    for name, picture in shown:
        draw.text((left, top), name, fill=(190, 190, 190), font=figures)
        sheet.paste(picture, (left, top + TEXT * 3 // 2))
        if beside:
            left += width + GAP
        else:
            top += picture.height + TEXT * 2 + GAP
    _draw_legend(draw, view, height, figures)
    return sheet


def describe_view(stats: dict[str, Any]) -> list[str]:
    """The sheet's figures and settings, a line each."""
    original, resized = stats["original_size"], stats["resized_size"]
    limit = f", {stats['resize_limit']}" if stats["resize_limit"] else ""
    patches, tokens = stats["patches"], stats["language_tokens"]
    size = (
        f"{original['width']} × {original['height']} px, resized to {resized['width']} × {resized['height']} px{limit}"
    )
    figures = (
        f"vision patches: {patches['kept']:,} of {patches['full']:,} ({patches['kept'] / patches['full']:.0%})     "
        f"language tokens: {tokens['kept']:,} of {tokens['full']:,} ({tokens['kept'] / tokens['full']:.0%})"
    )
    return [size, figures, describe_settings(stats)]


def describe_settings(stats: dict[str, Any]) -> str:
    """The method, and what it reads: `USED_BY` says what that is."""
    method = stats["patch_selection_method"]
    used = USED_BY[method]
    words = [f"method: {method}"]
    if "importance_method" in used:
        words.append(f"map: {stats['importance_method']} ({stats['importance_unit']})")
    if "alpha" in used:
        words.append(f"alpha: {stats['alpha']:g}")
    if stats["thresholds"]:
        words += [f"whole below {value:.4g} at {side} px" for side, value in stats["thresholds"].items()]
    if stats["drop_tolerance"] is not None:
        words.append(f"left out within {stats['drop_tolerance']:g} grey levels")
    if stats["predict_tolerance"] is not None:
        words.append(f"left out where predicted within {stats['predict_tolerance']:g}")
    if "max_language_tokens" in used and stats["max_language_tokens"] is not None:
        words.append(f"at most {stats['max_language_tokens']} language tokens")
    return "     ".join(words)


def _draw_legend(draw: ImageDraw.ImageDraw, view: View, top: int, font: Any) -> None:
    left = GAP
    for colour, text in legend_items(view.layout, view.patch_size):  # four at most, which fit
        draw.rectangle((left, top, left + TEXT, top + TEXT), fill=colour)
        draw.text((left + TEXT * 3 // 2, top + TEXT // 2), text, fill="white", font=font, anchor="lm")
        left += TEXT * 4 + int(font.getlength(text))


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    scale = min(width / picture.width, 2 * WIDTH / picture.height)  # or a strip upright would make a sheet of metres
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
