"""What a model practises on: pictures with prompts, by number. No answers: the model itself is the teacher."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from transformers_apt.models.image_files import image_files, load_photo
from transformers_apt.models.settings import logger

Row = tuple[Path, str]
"""An image file and a prompt."""

MOST_ELONGATED = 200
"""Upstream's processors refuse images of another aspect ratio."""


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

    The next takes the place of one whose image cannot be read, and a warning names the file.

    Args:
        rows: `(file, prompt)`, at least one.
        seed: of the orders.
    """

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows, self.seed = list(rows), seed

    def __getitem__(self, index: int) -> Pair:
        places = (self._place(index + turn) for turn in range(2 * len(self.rows)))
        found = next((pair for pair in map(self._read, places) if pair is not None), None)
        if found is None:
            raise ValueError(f"of {len(self.rows)} images with prompts, none can be read; expected JPEGs, PNGs, ...")
        return found

    def once(self) -> list[Pair]:
        """Every one that can be read, in an order of its own."""
        found = [pair for pair in map(self._read, map(self._place, range(len(self.rows)))) if pair is not None]
        if not found:
            raise ValueError(f"none of the images held out can be read: {self.rows[0][0]} and the like")
        return found

    def _place(self, index: int) -> int:
        epoch, place = divmod(index, len(self.rows))
        return int(np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))[place])

    def _read(self, place: int) -> Pair | None:
        file, prompt = self.rows[place]
        try:
            image = load_photo(file)
            if max(image.size) > MOST_ELONGATED * min(image.size):
                raise ValueError(f"{file} is {image.width} x {image.height} px: too elongated for the processor")
        except ValueError as error:
            logger.warning_once(f"{error}. It is left out of practice.")
            return None
        digest = hashlib.sha256(file.read_bytes() + b"\0" + prompt.encode())
        return Pair(image, prompt, digest.hexdigest()[:32])


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
            for number, line in enumerate(_text_of(prompts_file).split("\n"), 1)
            if line.strip()
        ]
    else:
        for prompt in prompts:
            _check_prompt(prompt, "--prompt")
        found = [(file, prompt) for file in sorted(image_files(images, images.rglob("*"))) for prompt in prompts]
    if not found:
        raise ValueError(f"{prompts_file} holds nothing to practise on: expected images with prompts")
    return found


EXAMPLE = '{"image": "a.png", "prompt": "What is the total?"}'


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason} at byte {error.start}); save it in UTF-8") from error


def _check_prompt(prompt: object, where: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: prompt is {prompt!r}; expected a text, as in {EXAMPLE}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: prompt is {prompt!r}, half a character ({error.reason}); expected text") from error


def check_placeholders(rows: Sequence[Row], processor: Any) -> None:
    """Refuse prompts with an image's place in them: it gets one by itself.

    Raises:
        ValueError: so it is.
    """
    for prompt in dict.fromkeys(prompt for _, prompt in rows):
        for token in (processor.image_token, processor.video_token):
            if token in prompt:
                raise ValueError(f"the prompt {prompt!r} has {token} in it: leave it out, the image needs no place")


def _row(line: str, images: Path, where: str) -> tuple[Path, str]:
    try:
        row = json.loads(line)
        file, prompt = images / row["image"], row["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: {error!r}; expected an object like {EXAMPLE}") from error
    _check_prompt(prompt, where)
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
    counts = Counter(file for file, _ in rows)
    order = [files[index] for index in np.random.default_rng([seed, 977]).permutation(len(files))]
    held, left = set(), min(most, len(rows) // 5)
    for file in order:
        if counts[file] <= left:
            held.add(file)
            left -= counts[file]
    held = held or {min(order, key=lambda file: counts[file])}
    return [row for row in rows if row[0] not in held], [row for row in rows if row[0] in held]
