"""Draws scenes: a few details that must be read, and much that need not be looked at closely.

Five kinds are asked about in the benchmark (`KINDS`); `drill` and `dense`, digits all over, teach the tower to read.
Everything follows from the random generator passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.quality import assets
from benchmarks.quality.assets import Split
from benchmarks.quality.canvas import COLOURS, LETTERS, SHAPE_COLOURS, SHAPES, Canvas, Scene, Thing, contrasting, near

KINDS = ("photo", "page", "screenshot", "chart", "plain")


def _code(rng: np.random.Generator) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, rng.integers(2, 5)))


def _word(rng: np.random.Generator) -> str:
    return "".join(LETTERS[index] for index in rng.integers(0, len(LETTERS), rng.integers(2, 8)))


def _face(rng: np.random.Generator, split: Split) -> Path:
    paths = assets.font_paths(split)
    return paths[rng.integers(len(paths))]


def _plain(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A fill, a gradient, or a gradient under noise of some grain."""
    first, second = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    style = rng.integers(3)
    if style == 0:
        return Image.new("RGB", (width, height), tuple(int(value) for value in first))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = x / width * np.cos(angle) + y / height * np.sin(angle)
    ramp = (ramp - ramp.min()) / max(float(ramp.max() - ramp.min()), 1e-6)
    pixels = first + ramp[..., None] * (second - first) * rng.uniform(0.2, 0.8)  # (h, w, 3)
    if style == 2:
        grain = int(rng.integers(1, 5))
        noise = rng.normal(0, rng.uniform(4, 26), (-(-height // grain), -(-width // grain), 1))
        pixels = pixels + noise.repeat(grain, 0).repeat(grain, 1)[:height, :width]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _add_shapes(canvas: Canvas, most: int) -> None:
    """One to `most` shapes of one kind, perhaps one of another kind, in colours that stand out from their ground."""
    rng, side = canvas.rng, min(canvas.width, canvas.height)
    names = [SHAPES[index] for index in rng.permutation(len(SHAPES))]
    kinds = [names[0]] * int(rng.integers(1, most + 1)) + [names[1]] * int(rng.random() < 0.5)
    for kind in kinds:
        edge = rng.uniform(max(18, 0.13 * side), max(24, 0.24 * side))
        box = canvas.free_box(edge, edge)
        if box is None:
            continue
        ground = canvas.ground(box).mean(0)
        far = [name for name in SHAPE_COLOURS if np.abs(np.asarray(COLOURS[name]) - ground).sum() > 150]
        canvas.shape(kind, str(rng.choice(far or list(SHAPE_COLOURS))), box)


def _add_sign(canvas: Canvas, split: Split, code: str, px: int) -> bool:
    """The code on a coloured plate; False if there is no room for it."""
    rng, path = canvas.rng, _face(canvas.rng, split)
    length = assets.font(path, px).getlength(code)
    pad_x, pad_y = px * rng.uniform(0.25, 0.9), px * rng.uniform(0.15, 0.5)
    box = canvas.free_box(length + 2 * pad_x, 0.74 * px + 2 * pad_y, tries=60)
    if box is None:
        return False
    name = str(rng.choice(list(COLOURS)))
    plate = near(rng, name)
    canvas.draw.rounded_rectangle(box, radius=rng.uniform(0, 0.3) * px, fill=plate)
    ink = contrasting(rng, np.asarray(plate), least=80)
    canvas.text(box[0] + pad_x, box[3] - pad_y - 0.01 * px, code, path, px, ink)
    canvas.things.append(Thing("sign", name, box))
    return True


def _on_ground(kind: str, ground: Image.Image, rng: np.random.Generator, split: Split, px: int) -> Scene:
    canvas, code = Canvas(ground, rng), _code(rng)
    signed = rng.random() < 0.85 and _add_sign(canvas, split, code, px)
    if not signed or rng.random() < 0.6:
        _add_shapes(canvas, 5)
    return canvas.scene(kind, code if signed else None, px if signed else None)


def photo(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """A photograph with a sign, shapes, or both."""
    return _on_ground("photo", assets.photo_crop(rng, split, height, width), rng, split, px)


def plain(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """A fill, gradient or noise with a sign, shapes, or both."""
    return _on_ground("plain", _plain(rng, height, width), rng, split, px)


def _lines(canvas: Canvas, split: Split, area: tuple[float, float, float, float], px: int, code: str | None) -> bool:
    """Fills an area with lines of words, the code being one of the words; False if the code found no place."""
    rng, path = canvas.rng, _face(canvas.rng, split)
    left, top, right, bottom = area
    ink = contrasting(rng, canvas.ground(area), least=110)
    step = px * rng.uniform(1.25, 1.8)
    count = int((bottom - top - 0.3 * px) / step)
    face = assets.font(path, px)
    if count < 1 or (code is not None and face.getlength(code) > right - left):
        return False
    space, room = face.getlength(" "), right - left
    target = int(rng.integers(count)) if code is not None else -1
    for index in range(count):
        words: list[str] = [code] if code is not None and index == target else []
        length = sum(face.getlength(word) for word in words)
        while True:
            word = _word(rng)
            length += face.getlength(word) + space
            if length > room or (rng.random() < 0.06 and words):
                break
            words.insert(int(rng.integers(len(words) + 1)), word)
        canvas.text(left, top + index * step + px, " ".join(words), path, px, ink)
    return True


def page(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """Lines of words, dark on light or the reverse; one word is the code."""
    paper = rng.integers(226, 256, 3) if rng.random() < 0.6 else rng.integers(0, 48, 3)
    canvas, code = Canvas(Image.new("RGB", (width, height), tuple(int(v) for v in paper)), rng), _code(rng)
    margin_x, margin_y = rng.uniform(2, 0.12 * width), rng.uniform(2, 0.12 * height)
    placed = _lines(canvas, split, (margin_x, margin_y, width - margin_x, height - margin_y), px, code)
    return canvas.scene("page", code if placed else None, px if placed else None)


def screenshot(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """A window: title bar, perhaps a side bar, lines of words, buttons, and a field with the code."""
    dark = rng.random() < 0.4
    base = rng.integers(20, 60) if dark else rng.integers(222, 250)
    canvas = Canvas(Image.new("RGB", (width, height), (int(base),) * 3), rng)
    code, path = _code(rng), _face(rng, split)
    bar, side = rng.uniform(0.06, 0.12) * height, rng.choice([0, rng.uniform(0.15, 0.3)]) * width
    accent = near(rng, str(rng.choice(SHAPE_COLOURS)))
    canvas.draw.rectangle((0, 0, width, bar), fill=accent)
    canvas.taken.append((0, 0, width, bar))
    if side:
        shade = int(np.clip(base + (14 if dark else -14), 0, 255))
        canvas.draw.rectangle((0, bar, side, height), fill=(shade,) * 3)
        canvas.taken.append((0, bar, side, height))
    length = assets.font(path, px).getlength(code)
    field_box = canvas.free_box(length + 1.2 * px, 1.7 * px, tries=60)
    if field_box is not None:
        fill = (int(rng.integers(60, 90)),) * 3 if dark else (255, 255, 255)
        canvas.draw.rectangle(field_box, fill=fill, outline=accent)
        canvas.text(
            field_box[0] + 0.6 * px, field_box[3] - 0.5 * px, code, path, px, contrasting(rng, np.asarray(fill), 110)
        )
        canvas.things.append(Thing("code", None, field_box))
    for _ in range(int(rng.integers(1, 5))):
        small = int(rng.integers(8, 17))
        box = canvas.free_box(rng.uniform(0.2, 0.6) * width, rng.uniform(2, 6) * small)
        if box is not None:
            _lines(canvas, split, box, small, None)
    if rng.random() < 0.6:
        _add_shapes(canvas, 4)
    return canvas.scene("screenshot", code if field_box else None, px if field_box else None)


def chart(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """A bar chart or a line drawing with labels; one label is the code."""
    paper = int(rng.integers(236, 256)) if rng.random() < 0.75 else int(rng.integers(0, 40))
    canvas, code, path = Canvas(Image.new("RGB", (width, height), (paper,) * 3), rng), _code(rng), _face(rng, split)
    ink = (20, 20, 20) if paper > 127 else (230, 230, 230)
    left, bottom = 0.1 * width, 0.88 * height
    length = assets.font(path, px).getlength(code)
    box = canvas.free_box(length + 4, 0.9 * px, tries=60)
    canvas.draw.line([(left, 0.05 * height), (left, bottom), (0.97 * width, bottom)], fill=ink, width=2)
    count = int(rng.integers(1, 6))
    pitch = (0.85 * width) / count
    label = int(rng.integers(8, 15))
    if rng.random() < 0.6:
        name = str(rng.choice(SHAPE_COLOURS))
        fill = near(rng, name)
        for index in range(count):
            x, top = left + pitch * (index + 0.2), rng.uniform(0.3, 0.8) * height
            bar = (x, top, x + pitch * 0.6, bottom - 2)
            canvas.draw.rectangle(bar, fill=fill)
            canvas.things.append(Thing("bar", name, bar))
            canvas.text(x, bottom + label, _word(rng)[:4], path, label, ink)
    else:
        for _ in range(int(rng.integers(1, 3))):
            xs = np.linspace(left, 0.95 * width, 8)
            ys = rng.uniform(0.1, 0.85, 8) * height
            canvas.draw.line(list(zip(xs, ys, strict=True)), fill=near(rng, str(rng.choice(SHAPE_COLOURS))), width=2)
        canvas.text(left, bottom + label, _word(rng), path, label, ink)
    if box is not None:
        canvas.draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(paper,) * 3)
        canvas.text(box[0] + 2, box[3] - 0.08 * px, code, path, px, ink)
        canvas.things.append(Thing("code", None, box))
    return canvas.scene("chart", code if box else None, px if box else None)


def dense(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """Digits wherever there is room, at sizes around `px`, among a few words: practice for the tower, no questions."""
    ground = assets.photo_crop(rng, split, height, width) if rng.random() < 0.5 else _plain(rng, height, width)
    canvas = Canvas(ground, rng)
    if rng.random() < 0.3:
        _add_shapes(canvas, 2)
    size = max(8, int(px * rng.uniform(0.8, 1.25)))
    for _ in range(int(1.2 * height * width / (4.5 * size * size)) + 1):
        size = int(np.clip(size * rng.uniform(0.9, 1.1), 8, 56))
        path = _face(rng, split)
        digits = "".join(str(digit) for digit in rng.integers(0, 10, rng.integers(1, 5)))
        word = _word(rng)[:3] if rng.random() < 0.15 else digits
        length = assets.font(path, size).getlength(word)
        box = canvas.free_box(length + 0.4 * size, 1.0 * size, gap=0.0, tries=6)
        if box is None:
            continue
        behind = canvas.ground(box)
        if rng.random() < 0.5 or behind.std(0).mean() > 30:
            fill = near(rng, str(rng.choice(list(COLOURS))))
            canvas.draw.rectangle(box, fill=fill)
            behind = np.asarray(fill)
        ink = contrasting(rng, behind, least=80)
        canvas.text(box[0] + 0.2 * size, box[3] - 0.14 * size, word, path, size, ink)
    return canvas.scene("dense", None, None)


def drill(rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """Digits in black on white or white on black, nothing else: what a tower that knows nothing can start from."""
    level = int(rng.integers(226, 256)) if rng.random() < 0.5 else int(rng.integers(0, 30))
    canvas = Canvas(Image.new("RGB", (width, height), (level,) * 3), rng)
    for _ in range(int(1.2 * height * width / (4.5 * px * px)) + 1):
        path = _face(rng, split)
        word = "".join(str(digit) for digit in rng.integers(0, 10, rng.integers(1, 5)))
        length = assets.font(path, px).getlength(word)
        box = canvas.free_box(length + 0.4 * px, 1.0 * px, gap=0.0, tries=6)
        if box is not None:
            canvas.text(box[0] + 0.2 * px, box[3] - 0.14 * px, word, path, px, (255 - level,) * 3)
    return canvas.scene("drill", None, None)


_MAKERS: dict[str, Callable[[np.random.Generator, Split, int, int, int], Scene]] = {
    "photo": photo,
    "page": page,
    "screenshot": screenshot,
    "chart": chart,
    "plain": plain,
    "dense": dense,
    "drill": drill,
}


def make(kind: str, rng: np.random.Generator, split: Split, height: int, width: int, px: int) -> Scene:
    """One scene of `kind`, `height` by `width` pixels, its code written at `px` pixels per em."""
    if kind not in _MAKERS:
        raise ValueError(f"kind is {kind!r}, expected one of {sorted(_MAKERS)}: see benchmarks.quality.scenes.KINDS")
    scene = _MAKERS[kind](rng, split, height, width, px)
    if rng.random() < 0.15:
        scene.image = scene.image.filter(ImageFilter.GaussianBlur(0.5))
    return scene
