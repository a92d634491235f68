"""What a model practises on: pictures with prompts, by number. No answers: the model itself is the teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from transformers_apt.embedded.asking import image_files, load_photo

Row = tuple[Path, str]
"""An image file and a prompt."""


@dataclass(frozen=True)
class Pair:
    """A picture and a prompt about it.

    Attributes:
        image: RGB.
        prompt: what to ask, without placeholders.
        key: names the two; where it is there, the teacher's answer is kept on disk under it.
    """

    image: Image.Image
    prompt: str
    key: str | None = None


class Pairs(Protocol):
    """Pairs by number, each number always the same pair. Processes that draw batches get a pickled copy."""

    def __getitem__(self, index: int) -> Pair: ...


class FilePairs:
    """Pairs of image files and prompts: all of them in random order, then all in another, without end.

    Args:
        rows: `(file, prompt)`, at least one.
        seed: of the orders.
    """

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows, self.seed = list(rows), seed

    def __getitem__(self, index: int) -> Pair:
        epoch, place = divmod(index, len(self.rows))
        file, prompt = self.rows[np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))[place]]
        digest = hashlib.sha256(file.read_bytes() + b"\0" + prompt.encode())
        return Pair(load_photo(file), prompt, digest.hexdigest()[:32])


def read_rows(images: Path, prompts: Sequence[str], prompts_file: Path | None) -> list[Row]:
    """`(file, prompt)` of a folder's images: each with each of `prompts`, or as the lines of `prompts_file` say.

    A line is a JSON object with `image`, a path in the folder, and `prompt`.

    Raises:
        ValueError: no images, no prompts, or a line that cannot be used; it names the line.
    """
    if bool(prompts) == (prompts_file is not None):
        raise ValueError("expected prompts, from a file of them (--prompts) or one by one (--prompt), and not both")
    if prompts_file is not None:
        found = [
            _row(line, images, f"{prompts_file}, line {number}")
            for number, line in enumerate(prompts_file.read_text(encoding="utf-8").splitlines(), 1)
            if line.strip()
        ]
    else:
        found = [(file, prompt) for file in sorted(image_files(images, images.rglob("*"))) for prompt in prompts]
    if not found:
        raise ValueError(f"{prompts_file} holds nothing to practise on: expected images with prompts")
    return found


def _row(line: str, images: Path, where: str) -> tuple[Path, str]:
    example = '{"image": "a.png", "prompt": "What is the total?"}'
    try:
        row = json.loads(line)
        file, prompt = images / row["image"], row["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: {error!r}; expected an object like {example}") from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: prompt is {prompt!r}; expected a text, as in {example}")
    if not file.is_file():
        raise ValueError(f"{where}: the image {str(file)!r} does not exist; expected a path in {images}")
    return file, prompt


def hold_out(rows: Sequence[Row], most: int, seed: int) -> tuple[list[Row], list[Row]]:
    """`(rows to practise on, rows to judge by)`, at most `most` of the latter and a fifth of all, no image in both.

    Raises:
        ValueError: there is one image only.
    """
    files = sorted({file for file, _ in rows})
    if len(files) < 2:
        raise ValueError(
            f"{files[0]} is the only image; expected two or more, to practise on some and judge by others"
        )
    held: set[Path] = set()
    judged = 0
    for index in np.random.default_rng([seed, 977]).permutation(len(files)):
        count = sum(file == files[index] for file, _ in rows)
        if held and judged + count > min(most, len(rows) // 5):
            break
        held.add(files[index])
        judged += count
    return [row for row in rows if row[0] not in held], [row for row in rows if row[0] in held]
