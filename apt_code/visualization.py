"""Pictures of a tiling: the borders of its patches, what is left of the pixels, and the map behind the choice.

Axis legend: `c` channels, `H W` pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from apt_code.importance.common import PAD_VALUE
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.patch_packing import area_average, cells_of

PATCH_COLOURS: dict[int, tuple[int, int, int]] = {
    1: (255, 214, 10),  # yellow
    2: (0, 200, 255),  # cyan
    4: (255, 45, 170),  # magenta
    8: (80, 255, 80),  # green
}
"""Border colour by patch size in base cells."""

DROPPED_COLOUR = (150, 150, 150)
"""Of the lines over what was left out."""

LEGEND_BACKGROUND = (28, 28, 28)
COLOUR_MAP = "inferno"
INCOMPLETE_CELL = (191, 191, 191)
ZERO_EVERYWHERE = (236, 236, 236)
EVERYWHERE = "0 everywhere"
"""Ends the caption of a map in which there is nothing to see."""


def reconstruct(image: Tensor, layout: PatchLayout, patch_size: int, inherited: Tensor | None = None) -> Tensor:
    """What the model can still see: every coarse patch as its area average, at full size.

    Args:
        image: `(c, H, W)`, values in [0, 255]; the image the layout was made for.
        layout: its tiling.
        patch_size: side of a base patch in pixels.
        inherited: `(c, H, W)`, pixels of which those are shown where cells were left out, as
            `apt_code.dropping.inherited_pixels` gives them.

    Returns:
        `(c, H, W)` uint8.

    Raises:
        ValueError: cells of the layout were left out, and nothing is given to show there.
    """
    if layout.dropped_cells and (inherited is None or inherited.shape != image.shape):
        given = "none" if inherited is None else f"those of shape {tuple(inherited.shape)}"
        raise ValueError(
            f"a layout with {layout.dropped_cells} cells left out, and of the pixels to show there {given}: expected "
            f"{tuple(image.shape)}; pass inherited=apt_code.dropping.inherited_pixels(…) of the whole tiling"
        )
    height, width = image.shape[-2:]
    seen = image.float().clone()
    for size in layout.patches_by_size:
        if size == 1:
            continue
        side = patch_size * size
        chosen = layout.patches[layout.sizes == size] // size
        averages = area_average(cells_of(image.unsqueeze(0), side)[0, chosen[:, 0], chosen[:, 1]], size)
        blocks = averages.repeat_interleave(size, 2).repeat_interleave(size, 3)
        for (row, col, _), block in zip(chosen.tolist(), blocks, strict=True):
            seen[:, row * side : (row + 1) * side, col * side : (col + 1) * side] = block
    if inherited is not None and layout.dropped_cells:
        left_out = (layout.owner == -1).repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
        seen = torch.where(left_out.to(seen.device), inherited.to(seen), seen)
    return seen[:, :height, :width].round().clamp(0, 255).to(torch.uint8)


def draw_tiling(image: Tensor, layout: PatchLayout, patch_size: int, scale: int = 2) -> Image.Image:
    """The image with the border of every patch, coloured by size, on a dark rim that shows on light and dark alike.

    What was left out is dark, with lines across.

    Args:
        image: `(c, H, W)`, values in [0, 255].
        layout: its tiling.
        patch_size: side of a base patch in pixels.
        scale: how many times larger the picture is, so that 14-px patches keep room inside their borders.
    """
    picture = to_picture(image)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    unit = patch_size * scale
    if layout.dropped_cells:
        picture.paste(_hatched(picture, unit), mask=_mask_of_dropped(layout, unit, picture.size))
    draw = ImageDraw.Draw(picture)
    # small first, so that the wider borders of large patches stay on top
    for row, col, size in sorted(layout.patches.tolist(), key=lambda patch: patch[2]):
        left, top = col * unit, row * unit
        box = (left, top, left + size * unit - 1, top + size * unit - 1)
        draw.rectangle(box, outline=(0, 0, 0))
        inner = tuple(edge + inset for edge, inset in zip(box, (1, 1, -1, -1), strict=True))
        draw.rectangle(inner, outline=PATCH_COLOURS[size], width=min(size, 2) * max(1, scale // 2))
    return picture


def _mask_of_dropped(layout: PatchLayout, unit: int, size: tuple[int, int]) -> Image.Image:
    """White where no patch covers a base cell of `unit` pixels."""
    cells = Image.fromarray(((layout.owner == -1).to(torch.uint8) * 255).cpu().numpy())
    return cells.resize((cells.width * unit, cells.height * unit), Image.Resampling.NEAREST).crop((0, 0, *size))


def _hatched(picture: Image.Image, unit: int) -> Image.Image:
    dark = Image.blend(picture, Image.new("RGB", picture.size), 0.65)
    draw = ImageDraw.Draw(dark)
    for start in range(-picture.height, picture.width, unit):
        draw.line((start, picture.height, start + picture.height, 0), DROPPED_COLOUR, max(1, unit // 14))
    return dark


def legend_items(layout: PatchLayout, patch_size: int) -> list[tuple[tuple[int, int, int], str]]:
    """`(colour, what it means and how many)` of each patch size, and of what was left out."""
    items = [
        (PATCH_COLOURS[size], f"{size * patch_size} px: {count:,}") for size, count in layout.patches_by_size.items()
    ]
    if layout.dropped_cells:
        items.append((DROPPED_COLOUR, f"left out: {layout.dropped_cells:,} cells of {MERGE_SIZE * patch_size} px"))
    return items


def add_legend(picture: Image.Image, layout: PatchLayout, patch_size: int) -> Image.Image:
    """The picture of `draw_tiling` above a dark strip: what the colours mean, and how many patches of each there are.

    The picture keeps its place and its pixels; where it is narrower than a line of the legend, dark fills the rest.
    """
    total = layout.grid[0] * layout.grid[1]
    items: list[tuple[tuple[int, int, int] | None, str]] = [*legend_items(layout, patch_size)]
    items.append((None, f"{layout.num_patches:,} of {total:,} patches ({layout.retention:.1%})"))
    text_px = max(14, min(picture.width // 46, 44))
    font = ImageFont.load_default(size=text_px)
    gap, line_px = text_px, text_px * 7 // 4
    widths = [font.getlength(text) + (text_px * 3 // 2 if colour else 0) for colour, text in items]
    width = max(picture.width, int(max(widths)) + 2 * gap)
    places, left, line = [], gap, 0
    for needed in widths:
        if left > gap and left + needed + gap > width:
            left, line = gap, line + 1
        places.append((left, picture.height + gap // 2 + line * line_px))
        left += int(needed) + 2 * gap
    sheet = Image.new("RGB", (width, picture.height + gap + (line + 1) * line_px), LEGEND_BACKGROUND)
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for (colour, text), (left, top) in zip(items, places, strict=True):
        middle = top + line_px // 2
        if colour:
            half = text_px // 2
            draw.rectangle((left, middle - half, left + 2 * half, middle + half), fill=colour)
            left += text_px * 3 // 2
        draw.text((left, middle), text, fill="white", font=font, anchor="lm")
    return sheet


def highest_importance(maps: Mapping[int, Tensor]) -> float:
    """The largest importance of a complete cell of any scale, or 1 where there is none above 0: one range for all."""
    found = [float(values[values < PAD_VALUE].max()) for values in maps.values() if bool((values < PAD_VALUE).any())]
    return max(found, default=0.0) or 1.0


def draw_heatmap(
    importance: Tensor,
    side: int,
    image_size: tuple[int, int],
    *,
    highest: float,
    unit: str,
    title: str,
    threshold: float | None = None,
) -> Image.Image:
    """One scale's importance map over the image's own pixels, with a colour bar. Needs matplotlib.

    Args:
        importance: `(rows, cols)`; cells of `PAD_VALUE` or more stick out of the image and are hatched grey.
        side: of a cell in pixels.
        image_size: `(H, W)` in pixels.
        highest: importance of the brightest colour; the darkest is 0. Give all scales of an image the same one.
        unit: what the map is measured in. All but bits are coloured by their root.
        title: above the map.
        threshold: marked on the colour bar where it lies in its range.
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height, width = image_size
    inches = 8 / max(height, width)
    wide = width > 1.5 * height
    # room for the colour bar and for the labels; the picture itself keeps its own proportions
    figure = Figure(
        figsize=(
            max(width * inches, 3.5) + (0.8 if wide else 2.0),
            max(height * inches, 1.2) + (2.2 if wide else 1.2),
        ),
        dpi=120,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    complete = importance < PAD_VALUE
    values = torch.where(complete, importance.detach().float(), torch.nan).cpu().numpy()
    rows, cols = values.shape
    heat = axes.imshow(
        values,
        cmap=COLOUR_MAP,
        norm=PowerNorm(_power(unit), vmin=0, vmax=highest),
        extent=(0, cols * side, rows * side, 0),
        interpolation="nearest",
    )
    grey = [channel / 255 for channel in INCOMPLETE_CELL]
    for row, col in (~complete).nonzero().tolist():
        cell = Rectangle((col * side, row * side), side, side, facecolor=grey, edgecolor="0.45", hatch="//", lw=0)
        axes.add_patch(cell)
    if not values_above_zero(importance):  # which the map would paint black, as if something were missing
        axes.images[0].set_cmap("Greys")
        axes.text(
            0.5, 0.5, "0 everywhere: nothing is lost at this size", transform=axes.transAxes, ha="center", va="center"
        )  # fmt: skip
    note = "" if bool(complete.all()) else "  (hatched: sticks out of the image, always split)"
    axes.set(xlim=(0, width), ylim=(height, 0), title=title, xlabel=f"px{note}", ylabel="px")
    bar = figure.colorbar(heat, ax=axes, orientation="horizontal" if wide else "vertical", pad=0.02, aspect=30)
    bar.set_label(f"{unit}, {_scale_note(unit)}" if _scale_note(unit) else unit)
    if threshold is not None and 0 <= threshold <= highest:
        mark = bar.ax.axvline if wide else bar.ax.axhline
        mark(threshold, color="black", linewidth=5)
        mark(threshold, color="white", linewidth=2)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", bbox_inches="tight", pad_inches=0.15)
    return Image.open(encoded).convert("RGB")


def shade_importance(
    importance: Tensor, side: int, image_size: tuple[int, int], *, highest: float, unit: str
) -> Image.Image:
    """`draw_heatmap` without axes, colour bar and text, pixel for pixel over the image; a hundred times as fast.

    Args:
        importance: `(rows, cols)`; cells of `PAD_VALUE` or more stick out of the image and are grey.
        side: of a cell in pixels.
        image_size: `(H, W)` in pixels.
        highest: importance of the brightest colour; the darkest is 0.
        unit: what the map is measured in, as in `draw_heatmap`.
    """
    colours = import_matplotlib().colormaps[COLOUR_MAP]
    values = importance.detach().double().cpu()
    shades = colours((values / highest).clamp(0, 1).pow(_power(unit)).numpy(), bytes=True)[..., :3]
    if not values_above_zero(importance):  # black would look like a picture that is missing
        shades[:] = ZERO_EVERYWHERE
    shades[(values >= PAD_VALUE).numpy()] = INCOMPLETE_CELL
    rows, cols = values.shape
    cells = Image.fromarray(shades).resize((cols * side, rows * side), Image.Resampling.NEAREST)
    return cells.crop((0, 0, image_size[1], image_size[0]))


def add_scale(
    picture: Image.Image, caption: str, *, highest: float, unit: str, threshold: float | None
) -> Image.Image:
    """The picture of `shade_importance` above its scale: the colours, what they stand for, and the threshold's mark.

    The letters are large, because such pictures are looked at as thumbnails.

    Args:
        picture: the map.
        caption: the first line.
        highest, unit: as in `shade_importance`.
        threshold: marked where it lies in the scale's range.
    """
    text_px = max(12, picture.width // 19)
    font = font_of(text_px)
    margin, bar_px = text_px // 2, text_px
    sheet = Image.new("RGB", (picture.width, picture.height + 5 * text_px + bar_px), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, picture.height + margin), caption, fill="black", font=font)
    if not caption.endswith(EVERYWHERE):
        left, right, top = margin, picture.width - margin, picture.height + 2 * text_px
        colours = import_matplotlib().colormaps[COLOUR_MAP]
        for x in range(left, right):
            colour = tuple(int(channel * 255) for channel in colours((x - left) / (right - left))[:3])
            draw.line((x, top, x, top + bar_px), fill=colour)
        for value in (0.0, highest / 4, highest):
            at = (value / highest) ** _power(unit)
            place, anchor = left + at * (right - left), "la" if at == 0 else "ra" if at == 1 else "ma"
            draw.line((place, top + bar_px, place, top + bar_px + margin // 2), fill="black", width=2)
            draw.text((place, top + bar_px + margin // 2), f"{value:.3g}", fill="black", font=font, anchor=anchor)
        if threshold is not None and 0 <= threshold <= highest:
            place = left + (threshold / highest) ** _power(unit) * (right - left)
            draw.line((place, top, place, top + bar_px), fill="black", width=5)
            draw.line((place, top, place, top + bar_px), fill="white", width=2)
        words = f"{unit}, {_scale_note(unit)}" if _scale_note(unit) else unit
        draw.text((margin, top + bar_px + text_px + margin), words, fill="black", font=font)
    return sheet


def font_of(pixels: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own typeface, which knows × and ² and most alphabets; Pillow's does not."""
    folder = import_matplotlib().get_data_path()
    return ImageFont.truetype(os.path.join(folder, "fonts", "ttf", "DejaVuSans.ttf"), pixels)


def values_above_zero(importance: Tensor) -> bool:
    """Whether there is anything to see in a map; of the finest scale of `upsample_mse` there is nothing."""
    return bool((importance[importance < PAD_VALUE] > 0).any())


def _scale_note(unit: str) -> str:
    return "" if _power(unit) == 1 else "coloured by its root"


def _power(unit: str) -> float:
    """All units but bits are coloured by their root: a few cells would drown the rest."""
    return 1.0 if unit == "bits" else 0.5


def import_matplotlib() -> Any:
    """matplotlib, or one line that says how to get it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "heatmaps need matplotlib, which is not installed; expected the extra 'viz': "
            "pip install 'transformers-apt[viz]'"
        ) from error
    return matplotlib


def to_picture(image: Tensor) -> Image.Image:
    """`(c, H, W)` values in [0, 255] -> an RGB picture."""
    pixels = image.expand(3, -1, -1)
    if pixels.dtype != torch.uint8:  # a large photo as floating point is four times its size
        pixels = pixels.float().round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
