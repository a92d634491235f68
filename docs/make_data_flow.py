"""Draw `docs/images/data_flow.svg` from a real photo, its real maps and tiling: `python docs/make_data_flow.py`."""

import base64
import io
from html import escape
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torch import Tensor

from apt_code import PatchLayout, PatchTokenizer
from apt_code.dropping import inherited_pixels
from apt_code.visualization import DROPPED_COLOUR, PATCH_COLOURS, reconstruct, to_picture

OUTPUT = Path(__file__).parent / "images" / "data_flow.svg"
PATCH_SIZE = 14
PAGE_PX, PHOTO_PX = 168, 112
DROP = 2
WIDTH, HEIGHT = 720, 876
INK, FAINT, PAPER, PROCESSOR, MODEL = "#1f2430", "#6b7280", "#ffffff", "#eef4fb", "#f5f0fa"


def text(
    x: float, y: float, words: str, size: int = 15, anchor: str = "start", weight: int = 400, fill: str = INK
) -> str:
    """One line of text."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(words)}</text>'
    )


def rectangle(
    x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", line: float = 1
) -> str:
    """A rectangle; a stroke lies on its edge."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="{line}"/>'
    )


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with a head at its end."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.6" marker-end="url(#head)"/>'


def picture(image: Image.Image, x: float, y: float, side: float) -> str:
    """A picture, embedded."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", optimize=True)
    content = base64.b64encode(encoded.getvalue()).decode()
    return (
        f'<image x="{x}" y="{y}" width="{side}" height="{side}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{content}"/>'
    )


def heatmap(values: Tensor, highest: float, x: float, y: float, side: float) -> list[str]:
    """An importance map as squares from dark (0) to bright (`highest`)."""
    cell = side / len(values)
    squares = []
    for row, line in enumerate(values.tolist()):
        for col, value in enumerate(line):
            share = (value / highest) ** 0.5
            colour = f"rgb({20 + 235 * share:.0f},{16 + 190 * share**1.6:.0f},{60 + 20 * share:.0f})"
            squares.append(rectangle(x + col * cell, y + row * cell, cell, cell, colour, PAPER, 0.7))
    return squares


def colour_of(rgb: tuple[int, int, int]) -> str:
    """As SVG writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def hole(left: float, top: float, side: float) -> str:
    """A cell that was left out: dark with a line across, as the visualiser draws it."""
    line = (
        f'<line x1="{left:g}" y1="{top + side:g}" x2="{left + side:g}" y2="{top:g}" '
        f'stroke="{colour_of(DROPPED_COLOUR)}"/>'
    )
    return rectangle(left, top, side, side, "#4b4b4b") + line


def holes(layout: PatchLayout, x: float, y: float, side: float) -> list[str]:
    """The 28-px cells that were left out."""
    cell = 2 * side / layout.grid[0]
    places = (layout.owner[::2, ::2] == -1).nonzero().tolist()
    return [hole(x + col * cell, y + row * cell, cell) for row, col in places]


def tiling(layout: PatchLayout, x: float, y: float, side: float) -> list[str]:
    """The borders of the patches, small ones first."""
    cell = side / layout.grid[0]
    patches = sorted(layout.patches.tolist(), key=lambda patch: patch[2])
    return [
        rectangle(
            x + col * cell + 1,
            y + row * cell + 1,
            size * cell - 2,
            size * cell - 2,
            "none",
            colour_of(PATCH_COLOURS[size]),
            1.6,
        )
        for row, col, size in patches
    ]


def box(x: float, y: float, width: float, title: str, *lines: str, code: bool = False) -> list[str]:
    """A titled box, 36 px and 21 px per line high."""
    height = 36 + 21 * len(lines)
    family = ' font-family="ui-monospace, Menlo, Consolas, monospace"' if code else ""
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{PAPER}" stroke="{INK}" '
        'stroke-width="1.3"/>',
        f"<g{family}>{text(x + width / 2, y + 24, title, 15, 'middle', 600)}</g>",
        *(text(x + width / 2, y + 45 + 21 * i, line, 14, "middle") for i, line in enumerate(lines)),
    ]


def main() -> None:
    """Write the drawing."""
    photo = Image.fromarray(data.astronaut()).crop((96, 0, 320, 224)).resize((PHOTO_PX, PHOTO_PX))
    page = Image.new("RGB", (PAGE_PX, PAGE_PX), "white")
    page.paste(photo, (PAGE_PX - PHOTO_PX, 0))
    image = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(PAGE_PX, PAGE_PX, 3).permute(2, 0, 1)
    settings = {"patch_selection_method": "budget", "alpha": 0.4, "importance_method": "laplacian"}
    tokenizer = PatchTokenizer(**settings, drop_tolerance=DROP)
    maps = {side: values[0] for side, values in tokenizer.compute_importance_maps(image[None]).items()}
    layout = tokenizer.select_layouts(image[None])[0]
    highest = max(float(values.max()) for values in maps.values())
    (whole,) = PatchTokenizer(**settings).select_layouts(image[None])
    seen = to_picture(reconstruct(image, layout, PATCH_SIZE, inherited_pixels(image, whole, PATCH_SIZE, DROP)))
    grid = layout.grid[0] * layout.grid[1]

    side, top = 152, 62
    parts = [
        rectangle(0, 0, WIDTH, HEIGHT, PAPER),
        rectangle(10, 10, WIDTH - 20, 560, PROCESSOR),
        rectangle(10, 602, WIDTH - 20, HEIGHT - 612, MODEL),
        text(24, 34, "processor", 14, weight=600, fill=FAINT),
        text(24, 626, "model", 14, weight=600, fill=FAINT),
        # image and maps
        picture(page, 24, top, side),
        text(24, top + side + 20, "image, resized to whole"),
        text(24, top + side + 39, "28-px cells"),
        arrow((24 + side + 4, top + side / 2), (212, top + side / 2)),
    ]
    for index, (cell, values) in enumerate(maps.items()):
        left = 220 + index * (side + 8)
        parts += heatmap(values, highest, left, top, side)
        parts.append(text(left + side / 2, top - 8, f"{cell} px", 14, "middle"))
    parts += [
        text(220, top + side + 20, "importance maps: what is at stake in keeping"),
        text(220, top + side + 39, "each cell whole"),
        # selection and layout
        arrow((576, top + side + 8), (576, 318), (518, 318)),
        *box(300, 278, 212, "selection", "v1, v2, budget or joint;", "what repeats is dropped"),
        arrow((300, 318), (24 + side + 10, 318)),
        picture(seen, 24, 276, side),
        *holes(layout, 24, 276, side),
        *tiling(layout, 24, 276, side),
        text(24, 276 + side + 20, f"{layout.num_patches} of {grid} patches,"),
        text(24, 276 + side + 39, f"{layout.num_language_tokens} of {grid // 4} tokens"),
        *box(220, 380, 460, "PatchLayout", "row, column and size of each patch, in canonical order", code=True),
        arrow((406, 358), (406, 374)),
        # what the processor returns
        arrow((300, 437), (300, 480), (190, 480), (190, 494)),
        arrow((359, 437), (359, 494)),
        arrow((589, 437), (589, 494)),
        *box(24, 500, 208, "pixel_values", "one row per patch", code=True),
        *box(246, 500, 226, "image_patch_layout", "with image_grid_thw", code=True),
        *box(486, 500, 206, "input_ids", "a placeholder per token", code=True),
        # the model
        *box(24, 644, 208, "vision tower", "a token per patch,", "at the patch's centre"),
        *box(246, 644, 226, "merger", "four small rows or one", "coarse row: one token"),
        *box(486, 644, 206, "language model", "a token at its top-left", "28-px cell"),
        arrow((128, 557), (128, 638)),
        arrow((589, 557), (589, 638)),
        arrow((359, 557), (359, 638)),
        arrow((359, 588), (200, 588), (200, 638)),
        arrow((359, 588), (520, 588), (520, 638)),
        arrow((232, 683), (240, 683)),
        arrow((472, 683), (480, 683)),
    ]
    legend = [(PATCH_COLOURS[1], "14 px"), (PATCH_COLOURS[2], "28 px"), (PATCH_COLOURS[4], "56 px")]
    y = 776
    parts.append(text(24, y, "one patch, one row, one token in the tower, whatever its size:", 14))
    for index, (colour, words) in enumerate(legend):
        cell = 14 * 2**index
        left = 40 + index * 130
        parts.append(rectangle(left, y + 16, cell, cell, "#dfe3ea", colour_of(colour), 2.4))
        parts.append(text(left + cell + 12, y + 16 + cell / 2 + 5, words, 14))
    parts += [hole(470, y + 16, 28), text(510, y + 35, "left out: no row, no token", 14)]
    head = (
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
    )
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif">'
    )
    OUTPUT.write_text("\n".join([start, head, *parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
