"""What the wheel brings along: a small trained Qwen2-VL checkpoint, and pictures with questions that it can answer.

Both come from `benchmarks/quality`; the checkpoint's model card and the pictures' README say how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """A picture, a question about it and the right answer.

    Attributes:
        image: path of a PNG file.
        question: what to ask, in words that the embedded model knows.
        answer: the right answer.
    """

    image: Path
    question: str
    answer: str


def demo_model_path() -> Path:
    """The folder of the embedded checkpoint: `Qwen2VLForConditionalGeneration` of 2.2 million parameters, in bfloat16.

    `from_pretrained` loads it. It was trained from scratch on drawn scenes and answers four kinds of question about
    them (`examples` has one of each); its README.md says how it was made and what it cannot do.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    return _found(_FOLDER / "model", "config.json")


def examples() -> list[Example]:
    """The embedded pictures and their questions, a photograph with a sign first.

    Raises:
        FileNotFoundError: the installation lacks them.
    """
    folder = _found(_FOLDER / "examples", "questions.jsonl")
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Example(folder / row["image"], row["question"], row["answers"][0]) for row in rows]


def _found(folder: Path, file: str) -> Path:
    if not (folder / file).is_file():
        raise FileNotFoundError(
            f"{folder} has no {file}; the package brings it along: install transformers-apt again, from a wheel or a "
            "complete checkout"
        )
    return folder
