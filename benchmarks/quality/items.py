"""The questions of an evaluation: drawn from held-out scenes, or read from a JSONL file of the user's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.quality import scenes
from benchmarks.quality.questions import questions
from benchmarks.quality.stream import text_px

#: Half the questions ask to read, the rest is shared out.
_TURN = ("read", "colour", "read", "count", "read", "where")
SIDES = (224, 448)
TEXT_PX = (8, 48)


@dataclass(frozen=True)
class Item:
    """One question about one picture, and every answer that counts as right."""

    load: Callable[[], Image.Image]
    question: str
    answers: tuple[str, ...]
    groups: tuple[str, ...]  # what it is counted under, besides "all"


def size_group(px: float) -> str:
    """The group of a text size; the benchmark's bar is for 14 px and above."""
    return "read <14 px" if px < 14 else "read 14-19 px" if px < 20 else "read 20-48 px"


def generated(count: int, seed: int) -> list[Item]:
    """`count` questions about as many scenes from the test photos and typefaces, 224 to 448 px a side."""
    rng, found = np.random.default_rng([seed, 4242]), []
    while len(found) < count:
        wanted = _TURN[len(found) % len(_TURN)]
        height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
        kind = scenes.KINDS[int(rng.integers(len(scenes.KINDS)))]
        scene = scenes.make(kind, rng, "test", height, width, text_px(rng, *TEXT_PX))
        asked = [question for question in questions(scene) if question.type == wanted]
        if not asked:
            continue
        question = asked[int(rng.integers(len(asked)))]
        groups = [wanted, f"on {kind}"]
        if wanted == "read" and question.text_px is not None:
            groups += [size_group(question.text_px), f"read on {kind}"]
            if question.text_px >= 14:
                groups.append("read 14+ px")
        image = scene.image
        found.append(Item(lambda image=image: image, question.text, (question.answer,), tuple(groups)))
    return found


def from_file(questions_file: Path, images: Path | None) -> list[Item]:
    """Questions from JSONL, one object a line: `image` (a path), `question`, `answers` (a list), optionally `group`.

    Paths of images are taken relative to `images`, or to the file's own folder.

    Raises:
        ValueError: a line that is not such an object, or an image that does not exist; it names the line.
    """
    root, found = images or questions_file.parent, []
    for number, line in enumerate(questions_file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{questions_file}, line {number}"
        try:
            row = json.loads(line)
            path, question, answers = root / row["image"], row["question"], row["answers"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{where}: {error!r}, expected an object with `image`, `question` and `answers`; "
                'for example {"image": "a.png", "question": "What is the total?", "answers": ["12"]}'
            ) from error
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(
                f"{where}: answers is {answers!r}, expected a list of strings: put one answer in brackets"
            )
        if not path.is_file():
            raise ValueError(f"{where}: the image {str(path)!r} does not exist: pass its folder with --images")
        groups = (str(row["group"]),) if "group" in row else ()
        found.append(Item(lambda path=path: Image.open(path).convert("RGB"), question, tuple(answers), groups))
    if not found:
        raise ValueError(f"{questions_file} holds no questions, expected at least one line")
    return found


def fingerprint(items: list[Item]) -> str:
    """Changes when any picture, question or answer does."""
    digest = hashlib.sha256()
    for item in items:
        image = item.load()
        digest.update(repr((image.size, item.question, item.answers)).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def normalise(answer: str) -> str:
    """What exact match compares: case, outer spaces and a final full stop do not count."""
    return answer.strip().removesuffix(".").strip().casefold()
