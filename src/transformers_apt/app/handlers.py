"""What the web page does, without its layout: take in a photo, show what a setting makes of it, answer a question.

Nothing is kept per visitor: every result follows from the arguments alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from apt_code.dropping import OFF
from apt_code.entropy_utils import IMPORTANCE_METHODS
from apt_code.visualization import (
    EVERYWHERE,
    add_scale,
    draw_tiling,
    highest_importance,
    reconstruct,
    shade_importance,
    to_picture,
    values_above_zero,
)
from transformers_apt.app.model import Answer, Answerer
from transformers_apt.app.numbers import is_number
from transformers_apt.app.shapes import Shapes
from transformers_apt.models import settings as selection
from transformers_apt.models.families import PUBLISHED, megapixels, series_of
from transformers_apt.visualizer.files import drawing_scale
from transformers_apt.visualizer.view import UnusableImageError, View, examine, load_picture

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an upload may be; Pillow knows more, some of it through other programs (EPS runs Ghostscript)."""

DROPS: dict[str, float | str] = {OFF: OFF, "0": 0, "1": 1, "2": 2, "4": 4, "8": 8}
PREDICTS: dict[str, float | str] = {OFF: OFF, "0": 0, "4": 4, "8": 8, "20": 20}
"""What can be chosen as `drop_tolerance` and as `predict_tolerance`. By name, because 0 is a tolerance and an empty
field would mean 0."""

REMEMBERED = 64
"""Resized photos kept in memory, so that a slider does not decode the file again."""


class UserError(ValueError):
    """A sentence for the visitor."""


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        upload_bytes: of a file.
        pixels: of an image, before the processor makes it smaller.
        resized_pixels: after that.
        question: characters of a question.
    """

    upload_bytes: int = 20 * 1024**2
    pixels: int = 50_000_000
    resized_pixels: int = 1280 * 28 * 28  # upstream's own default
    question: int = 500


@dataclass(frozen=True)
class Setting:
    """A choice of the page: `images_kwargs`, with an alpha for each method that has one.

    Attributes:
        method, importance: `patch_selection_method` and `importance_method`.
        share: alpha of `budget` and `joint`.
        multiple: alpha of `v2`.
        thresholds: of `v1`, for cells of 2 and of 4 patches a side; `None` is the importance map's own.
        drop: `drop_tolerance`, one of `DROPS`.
        predict: `predict_tolerance`, one of `PREDICTS`.
        most: `max_language_tokens`; `None` or 0 for no such limit, because an empty field may send 0.
    """

    method: str
    importance: str
    share: float
    multiple: float
    thresholds: tuple[float | None, float | None] = (None, None)
    drop: str = OFF
    predict: str = OFF
    most: float | None = None

    def kwargs(self) -> dict[str, Any]:
        """Only what the method reads.

        Raises:
            UserError: settings that cannot be used.
        """
        for name in ("method", "importance", "drop", "predict"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name}={getattr(self, name)!r}: expected a name in plain text.")
        for name, choices in (("drop", DROPS), ("predict", PREDICTS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}.")
        given = {
            "importance_method": self.importance,
            "alpha": self.multiple if self.method == "v2" else self.share,
            "thresholds": self._thresholds(),
            "drop_tolerance": DROPS[self.drop],
            "predict_tolerance": PREDICTS[self.predict],
            "max_language_tokens": self._most(),
        }
        used = selection.USED_BY.get(self.method, frozenset(given))
        kwargs: dict[str, Any] = {name: value for name, value in given.items() if name in used}
        kwargs["patch_selection_method"] = self.method
        try:
            selection.check_selection(**kwargs)
        except (TypeError, ValueError) as error:
            raise UserError(f"{error}.") from error
        return kwargs

    def of(self, path: str | None) -> str:
        """A word for this setting of this photo: the same for what comes to the same, and for nothing else."""
        return hashlib.sha256(json.dumps([path, self.kwargs()], sort_keys=True).encode()).hexdigest()[:16]

    def _thresholds(self) -> list[float] | None:
        """With the map's own where one was left empty; `None` where both were."""
        if self.thresholds == (None, None) or self.importance not in IMPORTANCE_METHODS:
            return None
        for value in self.thresholds:
            if is_number(value) and value is not None and value < 0:
                raise UserError(f"A threshold of {value:g} keeps nothing whole; expected 0 or more.")
        own = own_thresholds(self.importance)
        return [one if given is None else given for given, one in zip(self.thresholds, own, strict=True)]

    def _most(self) -> Any:
        """A whole number comes as a float from the page's field; what is none is refused with the others."""
        most = self.most
        if not most:
            return None
        return int(most) if isinstance(most, float) and most.is_integer() else most


def own_thresholds(importance: str) -> list[float]:
    """A map's own, for cells of 2 and of 4 patches a side."""
    return IMPORTANCE_METHODS[importance].thresholds(selection.NUM_SCALES)


@dataclass(frozen=True)
class Photo:
    """A photo that was taken in: its own size, and the picture after the processor's resize."""

    name: str
    size: tuple[int, int]
    resized: Image.Image


@dataclass(frozen=True)
class Look:
    """What one setting makes of a photo: the view, and its pictures.

    Attributes:
        view: what the image processor did.
        tiling, seen: the patches' borders, and what is left of the pixels.
        maps: `(picture, caption)` per scale.
    """

    view: View
    tiling: Image.Image
    seen: Image.Image
    maps: list[tuple[Image.Image, str]]


class Workbench:
    """The page's work, for any number of visitors at once; they wait for each other.

    Attributes:
        shapes: the models whose compute can be estimated.

    Args:
        answerer: the model; its processor is the one whose tilings are shown.
        limits: what a visitor may ask for.
        folders: where a photo may lie: the folder of the uploads, and that of the examples.
    """

    def __init__(self, answerer: Answerer, limits: Limits, folders: tuple[Path, ...]) -> None:
        self.answerer = answerer
        self.shapes = Shapes(answerer.model.config)
        self.limits = limits
        self.folders = tuple(folder.resolve() for folder in folders)
        Image.init()
        self._formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF came with Pillow 11.3
        self._photos: OrderedDict[Path, Photo] = OrderedDict()
        self._images = answerer.preprocessing
        size = self.image_processor.size
        longest = min(size["longest_edge"], limits.resized_pixels)
        own = longest == size["longest_edge"]
        #: To what an image is resized at most, and who says so.
        self.limit = f"at most {megapixels(longest)}, " + (
            "the limit of this model's files" if own else
            f"this page's limit (--max-resized-megapixels); the model's files allow {megapixels(size['longest_edge'])}"
        )  # fmt: skip
        released = PUBLISHED[self.family].max_pixels
        if own and longest < released:
            self.limit += f"; released {series_of(self.family)} checkpoints allow {megapixels(released)}"
        self.image_processor.size = {"shortest_edge": size["shortest_edge"], "longest_edge": longest}

    @property
    def family(self) -> str:
        """The model's."""
        return str(self.answerer.model.config.model_type)

    @property
    def patch_size(self) -> int:
        """Side of a base patch in pixels."""
        return int(self.image_processor.patch_size)

    @property
    def image_processor(self) -> Any:
        """The one whose tilings are shown."""
        return self.answerer.processor.image_processor

    def photo(self, path: str | None) -> Photo:
        """Take a photo in.

        Raises:
            UserError: there is none, or it cannot be used.
        """
        file = self._checked(path)
        with self._images:
            if file not in self._photos:
                picture = self._load(file)
                off = {"patch_selection_method": selection.OFF}
                try:
                    view = examine(picture, self.image_processor, **off)
                except ValueError as error:
                    raise UserError(f"{file.name} cannot be used: {error}.") from error
                # resizing is idempotent: the processor leaves what it has resized as it is
                self._photos[file] = Photo(file.name, picture.size, to_picture(view.resized))
            self._photos.move_to_end(file)
            while len(self._photos) > REMEMBERED:
                self._photos.popitem(last=False)
            return self._photos[file]

    def look(self, path: str | None, setting: Setting) -> Look:
        """What `setting` makes of the photo.

        Raises:
            UserError: a photo or a setting that cannot be used.
        """
        kwargs = setting.kwargs()
        photo = self.photo(path)
        with self._images:
            view = examine(photo.resized, self.image_processor, **kwargs)
            height, width = view.resized.shape[-2:]
            unit = IMPORTANCE_METHODS[view.settings["importance_method"]].unit
            highest = highest_importance(view.maps)
            maps = []
            for side, importance in view.maps.items():
                shades = shade_importance(importance, side, (height, width), highest=highest, unit=unit)
                caption, threshold = _caption(view, side), (view.settings["thresholds"] or {}).get(side)
                scaled = add_scale(shades, caption, highest=highest, unit=unit, threshold=threshold)
                maps.append((scaled, caption))
            tiling = draw_tiling(view.resized, view.layout, view.patch_size, drawing_scale(view))
            seen = to_picture(reconstruct(view.resized, view.layout, view.patch_size, view.inherited))
            return Look(view, tiling, seen, maps)

    def ask(self, path: str | None, question: str, settings: list[Setting]) -> Iterator[tuple[int, Answer]]:
        """`(which setting, its answer so far)`, one setting after the other.

        Raises:
            UserError: a photo, a question or a setting that cannot be used.
        """
        if not isinstance(question, str):
            raise UserError(f"question={question!r}: expected text.")
        question = question.strip()
        if not question:
            raise UserError("Type a question first.")
        if len(question) > self.limits.question:
            raise UserError(f"The question has {len(question)} characters; the limit is {self.limits.question}.")
        chosen = [setting.kwargs() for setting in settings]
        file = self._checked(path)
        with self._images:
            picture = self._load(file)
        for place, kwargs in enumerate(chosen):
            try:
                for answer in self.answerer.stream(picture, question, kwargs):
                    yield place, answer
            except ValueError as error:
                raise UserError(f"No answer: {error}.") from error

    def _checked(self, path: str | None) -> Path:
        """The file, if it is one that may be read."""
        if not path:
            raise UserError("Choose a photo first.")
        try:
            file = Path(path).resolve()
        except (TypeError, ValueError, OSError, RuntimeError):  # no text, or none that can be a path
            raise UserError("That is not the path of a file; upload the photo, or pick an example.") from None
        if not any(file.is_relative_to(folder) for folder in self.folders):
            raise UserError("That file was not uploaded here; upload it, or pick an example.")
        if not os.path.isfile(file):  # unlike Path.is_file, also of a name that is too long
            raise UserError("That photo is no longer on the server; upload it again.")
        size = file.stat().st_size
        if size > self.limits.upload_bytes:
            limit = self.limits.upload_bytes / 1024**2
            raise UserError(f"{file.name} has {size / 1024**2:.1f} MB; the limit is {limit:.1f} MB.")
        return file

    def _load(self, file: Path) -> Image.Image:
        try:
            return load_picture(file, formats=self._formats, max_pixels=self.limits.pixels)
        except UnusableImageError as error:
            # the visitor knows the file by its name, and need not know where it lies
            raise UserError(f"{str(error).replace(str(file), file.name)}.") from error


def _caption(view: View, side: int) -> str:
    """Of one scale's map: below what importance a cell stayed whole, or that there is nothing to see."""
    thresholds = view.settings["thresholds"] or {}
    if side in thresholds:
        return f"{side} px: whole below {thresholds[side]:.3g}"
    return f"{side} px" + ("" if values_above_zero(view.maps[side]) else f": {EVERYWHERE}")
