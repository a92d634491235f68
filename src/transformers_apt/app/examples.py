"""The pictures that the web page offers: the package's own, with a question, and photographs of scikit-image's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from transformers_apt import embedded

PHOTOGRAPHS = ("astronaut", "rocket", "coffee", "page")
QUESTION = "Describe this image."


@dataclass(frozen=True)
class Example:
    """A picture to pick.

    Attributes:
        image: path of the file.
        question: to ask about it.
        answer: the right one, where there is one.
    """

    image: Path
    question: str
    answer: str | None


def collect(folder: Path) -> list[Example]:
    """What can be offered here; scikit-image's photographs, if it is installed, are written to `folder`."""
    found: list[Example] = []
    with suppress(FileNotFoundError):  # an installation without the embedded files can still look at photographs
        found += [Example(example.image, example.question, example.answer) for example in embedded.examples()]
    try:
        from skimage import data
    except ModuleNotFoundError:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        path = folder / f"{name}.png"
        Image.fromarray(getattr(data, name)()).save(path)
        found.append(Example(path, QUESTION, None))
    return found
