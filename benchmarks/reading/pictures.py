"""Seven kinds of pictures with writing, drawn from a seed: the same on every machine with the same fonts.

Sides are multiples of 140 px, so that the picture and 0.6 of it are both made of whole 28-px cells and neither has to
be resized before it is tiled. Every second picture is a little worn: compressed as JPEG, or noisy like a scan.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

from benchmarks.reading import texts
from benchmarks.reading.sheet import SHORTEST, Line, Picture, Sheet, typeface
from benchmarks.reading.texts import pick

SANS = ("DejaVuSans", "Roboto-Regular", "Lato-Regular", "SourceSansPro-Regular", "HankenGrotesk-Regular")
SERIF = ("DejaVuSerif", "STIXGeneral", "SourceSerifPro-Regular", "Caladea-Regular")
GREYS = ((0, 0, 0), (34, 34, 34), (68, 68, 68))
SMALL = 0.6
"""The side of the small size, as a part of the native one."""


def document(rng: np.random.Generator) -> Sheet:
    """A printed page: a heading, paragraphs, a footnote."""
    sheet = Sheet(pick(rng, [(700, 980), (840, 980), (840, 1120)]))
    face, px, colour = pick(rng, SERIF + SANS), int(rng.integers(14, 19)), pick(rng, GREYS)
    width, margin = sheet.size[0], int(rng.integers(50, 90))
    y = sheet.write(margin, margin, pick(rng, texts.TITLES), face, 2 * px, colour) + px
    while y < sheet.size[1] - 2 * margin - 4 * px:
        y = sheet.paragraph(margin, y, width - 2 * margin, texts.prose(rng, 3), face, px, colour) + px
    sheet.write(
        margin, sheet.size[1] - margin, f"{texts.person(rng)}, {texts.date(rng)}", face, px - 2, (110, 110, 110)
    )
    return sheet


def web_page(rng: np.random.Generator) -> Sheet:
    """A bar of links, an article with a photo, cards beside it."""
    sheet = Sheet((1120, 840))
    face, bar = pick(rng, SANS), tuple(int(v) for v in rng.integers(20, 110, 3))
    sheet.draw.rectangle((0, 0, 1120, 56), fill=bar)
    for i, topic in enumerate(pick(rng, texts.TOPICS, 6)):
        sheet.write(40 + 150 * i, 18, topic, face, 17, (255, 255, 255))
    y = sheet.write(40, 84, pick(rng, texts.TITLES), face, 34, (20, 20, 20))
    y = sheet.write(40, y, f"By {texts.person(rng)} on {texts.date(rng)}", face, 13, (130, 130, 130)) + 8
    sheet.put(photograph(rng, (620, 240)), (40, y))
    y += 256
    for _ in range(int(rng.integers(2, 4))):
        y = sheet.paragraph(40, y, 620, texts.prose(rng, 3), face, 16, (40, 40, 40)) + 12
    sheet.write(40, y, "Continue reading this article", face, 16, (20, 80, 200))
    for i in range(3):
        top = 90 + 245 * i
        sheet.draw.rounded_rectangle((710, top, 1080, top + 220), 10, fill=(244, 246, 248), outline=(215, 218, 222))
        y = sheet.write(
            730, top + 16, f"{pick(rng, texts.TOPICS)} in {pick(rng, texts.TOWNS)}", face, 19, (20, 20, 20)
        )
        sheet.paragraph(730, y + 6, 330, texts.prose(rng, 2), face, 14, (90, 90, 90))
    return sheet


def code(rng: np.random.Generator) -> Sheet:
    """An editor, light or dark, with keywords in colour."""
    dark = rng.random() < 0.5
    sheet = Sheet((980, 840), (30, 30, 36) if dark else (255, 255, 255))
    plain, marked, quiet = (
        ((220, 220, 220), (120, 170, 250), (120, 150, 110)) if dark else ((20, 20, 20), (0, 60, 180), (90, 120, 80))
    )
    px = int(rng.integers(13, 17))
    y = 24
    for number, line in enumerate(texts.code(rng, 5), 1):
        sheet.write(16, y, f"{number:3d}", "DejaVuSansMono", px, (128, 128, 128))
        quoted = line.strip().startswith('"')
        colour = quiet if quoted else marked if line.startswith(("def", "import", "from")) else plain
        indent = len(line) - len(line.lstrip())
        sheet.write(70 + 0.6 * px * indent, y, line.strip(), "DejaVuSansMono", px, colour)
        y += round(1.35 * px)
    return sheet


def form(rng: np.random.Generator) -> Sheet:
    """Labels in faint grey type over boxes that are filled in, and a table of amounts."""
    sheet = Sheet((840, 1120))
    face, grey = pick(rng, SANS), tuple([int(rng.integers(120, 165))] * 3)
    y = sheet.write(56, 48, pick(rng, texts.TITLES), face, 28) + 6
    y = sheet.paragraph(56, y, 728, texts.prose(rng, 2), face, 13, grey) + 14
    fields = {
        "Name of the applicant": texts.person(rng),
        "Date of birth": texts.date(rng),
        "Street and number": f"{rng.integers(1, 240)} {pick(rng, texts.STREETS)}",
        "Town and postal code": f"{rng.integers(10000, 99999)} {pick(rng, texts.TOWNS)}",
        "Reference of the order": f"{rng.integers(100, 999)}-{rng.integers(10000, 99999)}",
        "Account to be credited": f"{rng.integers(1000, 9999)} {rng.integers(1000, 9999)} {rng.integers(10, 99)}",
    }
    for i, (label, value) in enumerate(fields.items()):
        left, top = 56 + 372 * (i % 2), y + 76 * (i // 2)
        sheet.write(left, top, label, face, int(rng.integers(11, 14)), grey)
        sheet.draw.rectangle((left, top + 20, left + 340, top + 56), outline=(160, 160, 160))
        sheet.write(left + 10, top + 28, value, "DejaVuSansMono", 16, (20, 30, 90))
    y += 76 * 3 + 20
    for row in range(9):
        top = y + 36 * row
        sheet.draw.line((56, top, 784, top), fill=(200, 200, 200))
        if row == 0:
            cells = ("Description", "Quantity", "Amount due")
        else:
            cells = (f"{pick(rng, texts.TOPICS)} at {pick(rng, texts.TOWNS)}", f"{rng.integers(1000, 99999)}", "")
        sheet.write(66, top + 9, cells[0], face, 14, grey if row == 0 else (0, 0, 0))
        sheet.write(440, top + 9, cells[1], face, 14, grey if row == 0 else (0, 0, 0))
        sheet.write(620, top + 9, cells[2] or texts.amount(rng), face, 14, grey if row == 0 else (0, 0, 0))
    sheet.paragraph(56, y + 36 * 9 + 20, 728, texts.prose(rng, 3), face, 12, grey)
    return sheet


def slide(rng: np.random.Generator) -> Sheet:
    """A title, points and sometimes a photo, on white, colour or a gradient."""
    sheet = Sheet((1120, 700), pick(rng, [(255, 255, 255), (248, 244, 236), (22, 44, 80)]))
    dark = sum(sheet.background) < 380
    ink, accent = ((240, 240, 240), (255, 200, 80)) if dark else ((30, 30, 30), (180, 60, 20))
    if rng.random() < 0.4:
        shade = np.linspace(0, -40, 700)[:, None, None] + np.array(sheet.background)
        sheet.put(Image.fromarray(np.broadcast_to(shade, (700, 1120, 3)).clip(0, 255).astype(np.uint8)))
    face = pick(rng, SANS)
    sheet.write(70, 56, pick(rng, texts.TITLES), face, 42, accent)
    with_photo = rng.random() < 0.5
    if with_photo:
        sheet.put(photograph(rng, (380, 420)), (690, 170))
    y, width = 170, 580 if with_photo else 980
    for sentence in pick(rng, texts.SENTENCES, 4):
        sheet.draw.ellipse((72, y + 8, 84, y + 20), fill=accent)
        y = sheet.paragraph(104, y, width, sentence, face, int(rng.integers(20, 27)), ink) + 18
    sheet.write(
        70, 654, f"{texts.person(rng)}, {pick(rng, texts.TOWNS)}, {texts.date(rng)}", face, 14, (140, 140, 140)
    )
    return sheet


def chart(rng: np.random.Generator) -> Sheet:
    """Bars, lines or points by matplotlib, with its own labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    width, height = pick(rng, [(980, 700), (840, 700), (1120, 840)])
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="tight")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    places, kind = pick(rng, texts.PLACES, 6), pick(rng, ["bars", "lines", "points"])
    size = float(rng.uniform(9, 12))
    for topic in pick(rng, texts.TOPICS, 3):
        values = rng.integers(1000, 9000, 6)
        if kind == "bars":
            axes.barh(places, values, label=topic, alpha=0.7)
            for place, value in zip(places, values.tolist(), strict=True):
                axes.text(value + 50, place, str(value), fontsize=size - 1)
        elif kind == "lines":
            axes.plot(places, values, marker="o", label=topic)
        else:
            axes.scatter(rng.integers(1000, 9000, 40), rng.integers(1000, 9000, 40), label=topic)
    axes.set_title(f"{pick(rng, texts.TITLES)}, {rng.integers(1990, 2026)}", fontsize=size + 4)
    axes.set_xlabel(f"{pick(rng, texts.TOPICS)} in thousands of tons", fontsize=size)
    axes.tick_params(labelsize=size)
    axes.legend(fontsize=size)
    axes.grid(alpha=0.3)
    canvas.draw()
    sheet = Sheet((width, height))
    sheet.put(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    for text in figure.findobj(Text):
        box = text.get_window_extent()
        wanted = text.get_visible() and len(text.get_text().replace(" ", "")) >= SHORTEST
        if wanted and not text.get_rotation() and 0 < box.x0 < box.x1 < width and 0 < box.y0 < box.y1 < height:
            sheet.lines.append(Line(text.get_text(), (box.x0, height - box.y1, box.x1, height - box.y0)))
    # drawn one over the other, none of them can be read
    sheet.lines = [a for a in sheet.lines if not any(a is not b and _overlap(a.box, b.box) for b in sheet.lines)]
    return sheet


def photo(rng: np.random.Generator) -> Sheet:
    """A photograph with signs put up in it, and a caption written straight on it."""
    sheet = Sheet(pick(rng, [(980, 700), (840, 840), (1120, 840)]))
    width, height = sheet.size
    sheet.put(photograph(rng, sheet.size))
    for i, sign in enumerate(pick(rng, texts.SIGNS, 5)):
        px, face = int(rng.integers(16, 34)), pick(rng, ("DejaVuSans-Bold", "Roboto-Bold", "Lato-Bold"))
        left, top = int(rng.integers(20, width - 460)), 24 + i * (height - 120) // 5
        board = pick(rng, [(250, 250, 250), (30, 90, 50), (190, 30, 30), (20, 60, 150), (250, 215, 40)])
        length = sheet.draw.textlength(sign, font=typeface(face, px))
        sheet.draw.rounded_rectangle(
            (left, top, left + length + 36, top + 2.2 * px), 6, fill=board, outline=(60, 60, 60)
        )
        ink = (20, 20, 20) if sum(board) > 420 else (250, 250, 250)
        sheet.write(left + 18, top + round(0.5 * px), sign, face, px, ink)
    sheet.draw.rectangle((0, height - 44, width, height), fill=(0, 0, 0))
    sheet.write(24, height - 34, f"Photo: {texts.person(rng)}, {texts.date(rng)}", "DejaVuSans", 16, (220, 220, 220))
    return sheet


KINDS: dict[str, Callable[[np.random.Generator], Sheet]] = {
    "document": document,
    "web page": web_page,
    "code": code,
    "form": form,
    "slide": slide,
    "chart": chart,
    "photo": photo,
}
SCANNED = ("document", "form")


def picture(kind: str, index: int) -> Picture:
    """The `index`-th picture of a kind."""
    rng = np.random.default_rng([*kind.encode(), index])
    sheet = KINDS[kind](rng)
    image = sheet.image
    if index % 4 in (1, 3) and index % 8 < 4:
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=85)
        image = Image.open(stored).convert("RGB")
    elif index % 2 == 1 and kind in SCANNED:
        noisy = np.asarray(image) * 0.97 + rng.normal(0, 2, (*image.size[::-1], 3))
        image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    return Picture(kind, index, image, tuple(sheet.lines))


def smaller(found: Picture, part: float = SMALL) -> Picture:
    """The same picture with sides of `part` of its own."""
    width, height = (round(side * part) for side in found.image.size)
    lines = tuple(Line(line.text, tuple(part * edge for edge in line.box)) for line in found.lines)  # type: ignore[arg-type]
    return Picture(found.kind, found.index, found.image.resize((width, height), Image.Resampling.LANCZOS), lines)


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A crop of one of scikit-image's or scikit-learn's photographs."""
    name = pick(rng, ("astronaut", "coffee", "chelsea", "rocket", "china.jpg", "flower.jpg"))
    found = load_sample_image(name) if name.endswith("jpg") else getattr(data, name)()
    image = Image.fromarray(found).convert("RGB")
    scale = max(size[0] / image.width, size[1] / image.height)
    width, height = size[0] / scale, size[1] / scale
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
