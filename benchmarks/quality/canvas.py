"""A picture being drawn: it knows what has been put where, so that questions and training targets follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality import assets

Box = tuple[float, float, float, float]  # left, top, right, bottom

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 30, 34),
    "green": (30, 150, 60),
    "blue": (34, 74, 214),
    "yellow": (240, 208, 32),
    "orange": (244, 128, 20),
    "purple": (134, 44, 170),
    "white": (246, 246, 246),
    "black": (14, 14, 14),
}
SHAPE_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple")
SHAPES = ("circle", "square", "triangle")
# no letter that a typeface may draw like a digit
LETTERS = "abcdefghkmnprtuvwxyACEFHKLMNPRTUVWXY"


@dataclass(frozen=True)
class Glyph:
    """One digit that was drawn: which, and the centre of its ink."""

    digit: int
    x: float
    y: float


@dataclass(frozen=True)
class Thing:
    """Something large enough to be asked for: a shape, a bar of a chart, the plate of a sign, or a bare code."""

    kind: str
    colour: str | None
    box: Box


@dataclass
class Scene:
    """A finished picture and the facts in it."""

    kind: str
    image: Image.Image
    glyphs: list[Glyph] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    code: str | None = None
    text_px: float | None = None


def near(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    """The named colour, a little off, as paint and light make it."""
    shade = np.asarray(COLOURS[name]) + rng.integers(-22, 23, 3)
    return tuple(int(value) for value in shade.clip(0, 255))


def contrasting(rng: np.random.Generator, ground: np.ndarray, least: float = 90.0) -> tuple[int, int, int]:
    """A random ink whose luminance differs from that of `ground` by at least `least` grey levels."""
    weights = np.array([0.299, 0.587, 0.114])
    level = float(np.asarray(ground, dtype=float).reshape(-1, 3).mean(0) @ weights)
    for _ in range(12):
        ink = rng.integers(0, 256, 3)
        if abs(float(ink @ weights) - level) >= least:
            return int(ink[0]), int(ink[1]), int(ink[2])
    return (0, 0, 0) if level > 127 else (255, 255, 255)


class Canvas:
    """A picture with the boxes already taken, the digits already drawn and the things already placed."""

    def __init__(self, image: Image.Image, rng: np.random.Generator) -> None:
        self.image, self.rng = image, rng
        self.draw = ImageDraw.Draw(image)
        self.taken: list[Box] = []
        self.glyphs: list[Glyph] = []
        self.things: list[Thing] = []

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    def free_box(self, width: float, height: float, gap: float = 3.0, tries: int = 25) -> Box | None:
        """Takes a random box of the given size that touches nothing taken, or returns None."""
        if width > self.width or height > self.height:
            return None
        corners = self.rng.uniform(0, 1, (tries, 2)) * (self.width - width, self.height - height)
        taken = np.asarray(self.taken or [(-1e9,) * 4])  # (boxes, 4)
        left, top = corners[:, :1], corners[:, 1:]  # (tries, 1)
        clear = (left + width + gap < taken[:, 0]) | (taken[:, 2] + gap < left)
        clear |= (top + height + gap < taken[:, 1]) | (taken[:, 3] + gap < top)
        fits = clear.all(1)
        if not fits.any():
            return None
        x, y = (float(value) for value in corners[fits.argmax()])
        self.taken.append((x, y, x + width, y + height))
        return self.taken[-1]

    def ground(self, box: Box) -> np.ndarray:
        """The pixels under a box, few enough to average quickly."""
        left, top, right, bottom = (int(value) for value in box)
        crop = self.image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        return np.asarray(crop.resize((4, 4), Image.Resampling.BOX)).reshape(-1, 3)

    def text(self, x: float, baseline: float, text: str, path: Path, px: int, fill: tuple[int, int, int]) -> None:
        """Draws text from `x` on `baseline` and remembers every digit of it."""
        face = assets.font(path, px)
        self.draw.text((x, baseline), text, font=face, fill=fill, anchor="ls")
        for index, char in enumerate(text):
            if char.isdigit():
                centre = x + face.getlength(text[:index]) + face.getlength(char) / 2
                self.glyphs.append(Glyph(int(char), centre, baseline - 0.35 * px))

    def shape(self, kind: str, colour: str, box: Box) -> None:
        """Draws a filled shape and remembers it."""
        left, top, right, bottom = box
        fill = near(self.rng, colour)
        if kind == "circle":
            self.draw.ellipse(box, fill=fill)
        elif kind == "triangle":
            self.draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=fill)
        else:
            self.draw.rectangle(box, fill=fill)
        self.things.append(Thing(kind, colour, box))

    def scene(self, kind: str, code: str | None, text_px: float | None) -> Scene:
        return Scene(kind, self.image, self.glyphs, self.things, code, text_px)
