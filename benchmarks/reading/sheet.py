"""A picture that is being drawn, and the lines of text that stand in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from benchmarks.quality.assets import font_paths

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
SHORTEST = 4
"""Shorter lines, such as tick labels of one digit, are drawn and not read: a slip there would be half of the line."""


@dataclass(frozen=True)
class Line:
    """One line of text and the box around its ink."""

    text: str
    box: Box


@dataclass(frozen=True)
class Picture:
    """A finished picture: what kind it is, which of its kind, and what stands where."""

    kind: str
    index: int
    image: Image.Image
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.index}"

    @property
    def held_out(self) -> bool:
        """Settings are chosen on the other half, pairs taking turns so that both halves hold every treatment."""
        return self.index // 2 % 2 == 1


@cache
def typeface(name: str, px: int) -> ImageFont.FreeTypeFont:
    """A typeface by its file's name, of matplotlib's or of the font packages of the extra `bench`."""
    known = {path.stem: path for split in ("train", "test") for path in font_paths(split)}  # type: ignore[arg-type]
    path = known.get(name, f"{get_data_path()}/fonts/ttf/{name}.ttf")
    return ImageFont.truetype(str(path), px, layout_engine=ImageFont.Layout.BASIC)


@dataclass
class Sheet:
    """A canvas that remembers the lines written on it."""

    size: tuple[int, int]
    background: tuple[int, int, int] = (255, 255, 255)
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", self.size, self.background)
        self.draw = ImageDraw.Draw(self.image)

    def put(self, image: Image.Image, place: tuple[int, int] = (0, 0)) -> None:
        self.image.paste(image, place)

    def write(
        self, x: float, y: float, text: str, face: str, px: int, colour: tuple[int, int, int] = (0, 0, 0)
    ) -> int:
        """One line with its top left at `(x, y)`; returns the y below it. What does not fit whole is left out."""
        font = typeface(face, px)
        box = self.draw.textbbox((x, y), text, font=font)
        below = y + round(1.4 * px)
        if box[2] > self.size[0] - 4 or box[3] > self.size[1] - 4:
            return below
        self.draw.text((x, y), text, font=font, fill=colour)
        if len(text.replace(" ", "")) >= SHORTEST:
            self.lines.append(Line(text.strip(), box))
        return below

    def paragraph(
        self, x: float, y: float, width: float, text: str, face: str, px: int, colour: tuple[int, int, int] = (0, 0, 0)
    ) -> int:
        """Text in lines of at most `width` pixels; returns the y below it."""
        font = typeface(face, px)
        line = ""
        for word in [*text.split(), ""]:
            longer = f"{line} {word}".strip()
            if line and (not word or font.getlength(longer) > width):
                y = self.write(x, y, line, face, px, colour)
                line = word
            else:
                line = longer
        return y
