"""Questions about a scene, each with its one right answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from benchmarks.quality.canvas import COLOURS, SHAPES, Scene, Thing

TYPES = ("read", "colour", "count", "where")
_COUNTED = (*SHAPES, "bar")

#: One token each in the benchmark model's tokenizer, so that a prompt is short.
WORDS = (
    *("Read", "What", "How", "Where", " the", " code", " colour", " is", " many", " are", " there", " sign"),
    *(f" {name}" for name in _COUNTED),
    *(f" {name}s" for name in _COUNTED),
    *COLOURS,
    *("left", "right", "top", "bottom"),
)


@dataclass(frozen=True)
class Question:
    """A question about a picture."""

    type: str
    text: str
    answer: str
    text_px: float | None = None


def _side(thing: Thing, width: int, height: int) -> str | None:
    """The side of the picture a thing is at, or None where a person would hesitate."""
    x = (thing.box[0] + thing.box[2]) / 2 / width - 0.5
    y = (thing.box[1] + thing.box[3]) / 2 / height - 0.5
    if max(abs(x), abs(y)) < 0.15 or max(abs(x), abs(y)) < 1.6 * min(abs(x), abs(y)):
        return None
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "top" if y < 0 else "bottom"


def questions(scene: Scene) -> list[Question]:
    """Every question that the scene has one clear answer to."""
    found = []
    if scene.code is not None:
        found.append(Question("read", "Read the code.", scene.code, scene.text_px))
    counts = Counter(thing.kind for thing in scene.things)
    found += [
        Question("count", f"How many {kind}s are there?", str(counts[kind])) for kind in _COUNTED if counts[kind]
    ]
    for kind in dict.fromkeys(thing.kind for thing in scene.things):
        same = [thing for thing in scene.things if thing.kind == kind]
        colours = {thing.colour for thing in same}
        if len(colours) == 1 and same[0].colour is not None and (len(same) == 1 or kind == "bar"):
            plural = len(same) > 1
            text = f"What colour are the {kind}s?" if plural else f"What colour is the {kind}?"
            found.append(Question("colour", text, same[0].colour))
        if len(same) == 1 and kind != "bar":
            side = _side(same[0], scene.image.width, scene.image.height)
            if side is not None:
                found.append(Question("where", f"Where is the {kind}?", side))
    return found


def draw(rng: np.random.Generator, scene: Scene, most: int) -> list[Question]:
    """At most `most` of the scene's questions in random order, reading always among them."""
    found = questions(scene)
    reading = [question for question in found if question.type == "read"]
    rest = [question for question in found if question.type != "read"]
    picked = reading + [rest[index] for index in rng.permutation(len(rest))][: max(0, most - len(reading))]
    return [picked[index] for index in rng.permutation(len(picked))]
