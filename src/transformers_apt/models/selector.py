"""From a call's images to chosen patches and their rows: what the image processors of both backends share.

Axis legend: `b` images of one shape, `n` patches, `c` channels, `p` patch side in pixels.
"""

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import SizeDict

from apt_code.device import on_device
from apt_code.device.selection import Selected, select_batches
from apt_code.importance.common import known_grey_levels
from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import Affine, RowPacker
from apt_code.patch_tokenizer import PatchTokenizer
from apt_code.selection.fit import fractions_to_try, limit_of
from transformers_apt.models import pixels
from transformers_apt.models.settings import FIT, METHOD, NUM_SCALES, OF_THE_TOKENIZER

GROUPED_PIXELS = 2**18
"""Images up to this size are worked on as a batch: beyond it, stacking them costs more than the calls it saves."""

PIXELS_ON_A_DEVICE = 2**23
"""How many pixels a batch on a GPU may have: stacking costs nothing there, and telling it what to do does. Four images
of 1080p take some hundred megabytes on the way."""

Batches = list[tuple[Tensor, list[int]]]
"""`(b, c, H, W)` images, and their places among all."""

Resize = Callable[[Sequence[Any], Any], Sequence[Tensor]]
"""`(images, size)`: the images as the backend resizes them to upstream's `size`, `(c, H, W)` each.

With `None` they stay as they are."""


@dataclass(frozen=True)
class Choice:
    """What became of an image.

    Attributes:
        image: `(c, H, W)` as it was resized, not yet rescaled.
        layout: its patches.
        info: what a method with a budget did.
    """

    image: Tensor
    layout: PatchLayout
    info: dict[str, Any] | None


@dataclass(frozen=True)
class Selection:
    """What became of a call's images, in their order.

    Attributes:
        rows: `(n, c·t·p·p)` float32, the rows of all images.
        layouts, infos: each image's layout and budget info.
        parts: `(m, c·t·p·p)` float32, the base patches that each coarse patch covers, where they were asked for.
    """

    rows: Tensor
    layouts: list[PatchLayout]
    infos: list[dict[str, Any] | None]
    parts: Tensor | None


@dataclass(frozen=True)
class PatchSelector:
    """One call's way from images to rows, the same for both backends.

    Attributes:
        settings: all of them, as `Resolved.values`.
        patch_size, merge_size: of the image processor.
        grey_scale: what a floating-point pixel is multiplied by to be a grey level in [0, 255]; integer pixels are
            grey levels already.
        pack: makes rows of the chosen patches with the backend's rescaling and normalisation.
        size: upstream's, of the call; `None` where it does not resize.
        group: whether images of one shape may be worked on together.
    """

    settings: Mapping[str, Any]
    patch_size: int
    merge_size: int
    grey_scale: float
    pack: RowPacker
    size: Any
    group: bool

    @classmethod
    def of_call(
        cls,
        settings: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        normalise: Callable[[Tensor], Tensor],
        affine: Affine | None,
    ) -> "PatchSelector":
        """From a `_preprocess` call's arguments; `normalise` and `affine` as `RowPacker`."""
        return cls(
            settings,
            kwargs["patch_size"],
            kwargs["merge_size"],
            pixels.grey_scale(kwargs),
            RowPacker(kwargs["patch_size"], kwargs["temporal_patch_size"], normalise, affine),
            kwargs["size"] if kwargs["do_resize"] else None,
            not kwargs.get("disable_grouping"),
        )

    def __call__(self, images: Sequence[Any], readable: Sequence[bool], resize: Resize) -> Selection:
        """Resize a call's images, choose their patches and cut them.

        Args:
            images: as the backend has them before resizing.
            readable: whether each can be chosen on; of the others every patch is kept.
            resize: of images to a size.
        """
        resized = resize(images, self.size)
        batches = self._batches(resized)
        chosen = self.choose(batches, readable)
        if self.settings[METHOD] == FIT:
            chosen = [self._fit(*one, resize) for one in zip(images, chosen, readable, strict=True)]
            batches = self._batches([one.image for one in chosen])
        layouts = [one.layout for one in chosen]
        parts = self._rows(batches, [layout.parts for layout in layouts]) if self.settings["patch_parts"] else None
        return Selection(self._rows(batches, layouts), layouts, [one.info for one in chosen], parts)

    def choose(self, batches: Batches, readable: Sequence[bool]) -> list[Choice]:
        """Choose the patches of resized images.

        Raises:
            ValueError: one that is not made of whole merge cells.
        """
        good = []
        for batch, members in batches:
            self._check_sides(batch)
            good.append([readable[i] for i in members])
        # one after the other, so that copies of floats go as soon as they can
        chosen = (self._to_choose_on(one[0], which) for one, which in zip(batches, good, strict=True) if any(which))
        floats = any(batch.is_floating_point() for batch, _ in batches)
        with known_grey_levels() if floats else contextlib.nullcontext():
            selected = iter(select_batches(self._tokenizer(), chosen) if any(readable) else ())
        found: dict[int, Choice] = {}
        for (batch, members), which in zip(batches, good, strict=True):
            both = self._with_unreadable(batch, which, next(selected) if any(which) else ([], None))
            for i, image, one in zip(members, batch, both, strict=True):
                found[i] = Choice(image, *one)
        return [found[i] for i in range(len(readable))]

    def _batches(self, images: Sequence[Tensor]) -> Batches:
        """Images of one shape make a batch, unless that is forbidden or copying them together would cost more than it
        saves. The result is the same."""
        if len(images) == 1:
            return [(images[0].unsqueeze(0), [0])]
        batches: dict[Any, list[int]] = {}
        counts: Counter[Any] = Counter()
        for i, image in enumerate(images):
            kind = (image.shape, image.dtype)
            most = _most_together(image) if self.group else 1
            batches.setdefault((kind, counts[kind] // most), []).append(i)
            counts[kind] += 1
        return [
            (
                torch.stack([images[i] for i in members]) if len(members) > 1 else images[members[0]].unsqueeze(0),
                members,
            )
            for members in batches.values()
        ]

    def _tokenizer(self) -> PatchTokenizer:
        settings = {name: self.settings[name] for name in OF_THE_TOKENIZER}
        if settings[METHOD] == FIT:  # its tiling
            settings |= {METHOD: "v1", "alpha": 1.0}
        return PatchTokenizer(num_scales=NUM_SCALES, base_patch_size=self.patch_size, **settings)

    def _check_sides(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        unit = self.patch_size * self.merge_size
        if height % unit or width % unit:
            raise ValueError(
                f"an image of {height}×{width} px: expected sides that are multiples of {unit} "
                "(patch_size × merge_size); leave do_resize on, or resize the image so"
            )

    def _to_choose_on(self, images: Tensor, readable: Sequence[bool]) -> Tensor:
        """Those of a batch `(b, c, H, W)` that can be chosen on, in grey levels."""
        chosen = images
        if not all(readable):  # a list of places would make a GPU wait
            chosen = torch.stack([image for image, good in zip(images, readable, strict=True) if good])
        if chosen.is_floating_point():  # bicubic resizing overshoots, by any amount
            chosen = (chosen * self.grey_scale if self.grey_scale != 1 else chosen).clamp(0, 255)
        return chosen

    def _with_unreadable(
        self, images: Tensor, readable: Sequence[bool], selected: Selected
    ) -> list[tuple[PatchLayout, dict[str, Any] | None]]:
        """One layout and one budget info for each image of a batch."""
        layouts, info = selected
        infos = [info] * len(layouts)
        if info is not None and "dropped" in info:
            infos = [{**info, "dropped": n} for n in info["dropped"]]
        if all(readable):
            return list(zip(layouts, infos, strict=True))
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        found = iter(zip(layouts, infos, strict=True))
        return [next(found) if good else (PatchLayout.uniform(grid), None) for good in readable]

    def _fit(self, image: Any, full: Choice, readable: bool, resize: Resize) -> Choice:
        """The largest picture of an image whose language tokens are within the limit.

        Raises:
            ValueError: it would have to be made smaller, and cannot be.
        """
        height, width = full.image.shape[-2:]
        cells = height * width // (self.patch_size * self.merge_size) ** 2
        limit = limit_of(cells, self.settings["alpha"], self.settings["max_language_tokens"])
        found, max_pixels = full, height * width
        if full.layout.num_language_tokens > limit:
            for fraction in fractions_to_try(full.layout.num_language_tokens, cells, limit) if self.size else ():
                max_pixels = max(1, int(height * width * fraction))
                size = SizeDict(shortest_edge=min(self.size.shortest_edge, max_pixels), longest_edge=max_pixels)
                (smaller,) = resize([image], size)
                if smaller.shape == found.image.shape:
                    continue
                (found,) = self.choose(self._batches([smaller]), [readable])
                if found.layout.num_language_tokens <= limit:
                    break
        tokens = found.layout.num_language_tokens
        if tokens > limit:
            raise ValueError(
                f"an image of {height}×{width} px makes {tokens} language tokens, patch_selection_method={FIT!r} "
                f"allows {limit} (alpha={self.settings['alpha']}, "
                f"max_language_tokens={self.settings['max_language_tokens']}), and it cannot be resized; expected "
                "do_resize=True and an image processor that resizes as upstream does"
            )
        info = {
            "alpha": self.settings["alpha"], "limit": limit, "language_tokens": tokens, "cells": cells,
            "max_pixels": max_pixels,
        }  # fmt: skip
        return Choice(found.image, found.layout, info)

    def _rows(self, batches: Batches, layouts: Sequence[PatchLayout]) -> Tensor:
        """The rows of all images, in their order, of the patches that the layouts list."""
        starts = [0, *itertools.accumulate(layout.num_patches for layout in layouts)]
        first = batches[0][0]
        rows = torch.empty((starts[-1], self.pack.row_length(first)), dtype=torch.float32, device=first.device)
        self.pack.write_batches(
            [(batch, [layouts[i] for i in members], [starts[i] for i in members]) for batch, members in batches], rows
        )
        return rows


def _most_together(image: Tensor) -> int:
    """How many images like this one are worked on as a batch."""
    pixels = image.shape[-2] * image.shape[-1]
    if on_device(image):
        return max(1, PIXELS_ON_A_DEVICE // max(1, pixels))
    return sys.maxsize if pixels <= GROUPED_PIXELS else 1
