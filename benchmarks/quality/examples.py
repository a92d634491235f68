"""Draws the pictures that the package brings along, with questions that the model answers.

`python -m benchmarks.quality.examples --model FOLDER --out src/transformers_apt/embedded/examples`

One picture for each kind of question and ground, from the held-out photographs and typefaces: the first seed whose
answer is right at full resolution and at `budget` 0.3. They demonstrate; what the model can do is in docs/quality.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import transformers_apt
from benchmarks.quality import assets, scenes
from benchmarks.quality.items import normalise
from benchmarks.quality.questions import Question, questions
from transformers_apt.embedded import asking

#: name, kind of scene, type of question, least digits or number of the answer, height, width, size of the text
WANTED = (
    ("sign", "photo", "read", 4, 392, 448, 24),
    ("page", "page", "read", 4, 224, 336, 26),
    ("screenshot", "screenshot", "read", 4, 336, 448, 20),
    ("chart", "chart", "colour", 0, 280, 392, 18),
    ("shapes", "photo", "count", 3, 364, 364, 28),
    ("plate", "plain", "where", 0, 308, 420, 32),
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"patch_selection_method": "off"},
    {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"},
)
#: Places among the held-out photographs of those that may be passed on as the README below says.
_FREE = (0, 1, 3)
_MOST = 400
_README = """\
# Examples

Pictures and questions for `transformers-apt demo` and the web page, drawn by `python -m benchmarks.quality.examples`
on photographs that scikit-image bundles: coffee (Rachel Michetti, CC0), Chelsea the cat (Stéfan van der Walt, CC0),
the Hubble deep field (NASA, public domain). Each is the first of its kind that the embedded model answers rightly at
full resolution and at `budget` 0.3 with `upsample_mse`: they demonstrate and prove nothing. docs/quality.md has the
figures.
"""


def _size(question: Question) -> int:
    if question.type == "read":
        return len(question.answer)
    return int(question.answer) if question.type == "count" else 0


def find(model: Any, processor: Any, kind: str, wanted: str, least: int, height: int, width: int, px: int):
    """`(image, question)` of the first seed that the model answers under every setting."""
    for seed in range(_MOST):
        if kind == "photo" and np.random.default_rng([seed, 77]).integers(len(assets.photos("test"))) not in _FREE:
            continue  # the first thing a scene draws is its photograph
        scene = scenes.make(kind, np.random.default_rng([seed, 77]), "test", height, width, px)
        for question in questions(scene):
            if question.type != wanted or _size(question) < least:
                continue
            answers = (asking.answer(model, processor, scene.image, question.text, settings) for settings in SETTINGS)
            if all(normalise(answer) == normalise(question.answer) for answer in answers):
                return scene.image, question
    raise RuntimeError(f"no {kind} with a {wanted!r} question among {_MOST} seeds is answered rightly: train on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    transformers_apt.apply()
    model, processor = asking.load_checkpoint(options.model, "cpu", "float32")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, kind, wanted, *size in WANTED:
        image, question = find(model, processor, kind, wanted, *size)
        image.save(options.out / f"{name}.png", optimize=True)
        lines.append(json.dumps({"image": f"{name}.png", "question": question.text, "answers": [question.answer]}))
        print(lines[-1])
    (options.out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.out / "README.md").write_text(_README, encoding="utf-8")


if __name__ == "__main__":
    main()
