"""From a call's images to chosen patches and their rows: what the image processors of both backends share.

Axis legend: `b` images of one shape, `n` patches, `c` channels, `p` patch side in pixels.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import SizeDict

from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import Affine, RowPacker
from apt_code.patch_tokenizer import PatchTokenizer
from apt_code.selection.fit import fractions_to_try, limit_of
from transformers_apt.models import pixels
from transformers_apt.models.settings import FIT, METHOD, NUM_SCALES, OF_THE_TOKENIZER

GROUPED_PIXELS = 2**18
"""Images up to this size are worked on as a batch: beyond it, stacking them costs more than the calls it saves."""

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
        found: dict[int, Choice] = {}
        for batch, members in batches:
            layouts, infos = self._choose(batch, [readable[i] for i in members])
            for i, *one in zip(members, batch, layouts, infos, strict=True):
                found[i] = Choice(*one)
        return [found[i] for i in range(len(readable))]

    def _batches(self, images: Sequence[Tensor]) -> Batches:
        """Images of one shape make a batch, unless that is forbidden or copying them together would cost more than it
        saves. The result is the same."""
        batches: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            together = self.group and image.shape[-2] * image.shape[-1] <= GROUPED_PIXELS
            batches.setdefault((image.shape, image.dtype) if together else i, []).append(i)
        return [
            (
                torch.stack([images[i] for i in members]) if len(members) > 1 else images[members[0]].unsqueeze(0),
                members,
            )
            for members in batches.values()
        ]

    def _choose(
        self, images: Tensor, readable: Sequence[bool]
    ) -> tuple[list[PatchLayout], list[dict[str, Any] | None]]:
        """One layout and one budget info per image of a batch `(b, c, H, W)`."""
        height, width = images.shape[-2:]
        unit = self.patch_size * self.merge_size
        if height % unit or width % unit:
            raise ValueError(
                f"an image of {height}×{width} px: expected sides that are multiples of {unit} "
                "(patch_size × merge_size); leave do_resize on, or resize the image so"
            )
        everything = partial(PatchLayout.uniform, (height // self.patch_size, width // self.patch_size))
        if not any(readable):
            return [everything()] * len(images), [None] * len(images)
        chosen = images if all(readable) else images[list(readable)]
        if chosen.is_floating_point():  # bicubic resizing overshoots, by any amount
            chosen = (chosen * self.grey_scale if self.grey_scale != 1 else chosen).clamp(0, 255)
        settings = {name: self.settings[name] for name in OF_THE_TOKENIZER}
        if settings[METHOD] == FIT:  # its tiling
            settings |= {METHOD: "v1", "alpha": 1.0}
        tokenizer = PatchTokenizer(num_scales=NUM_SCALES, base_patch_size=self.patch_size, **settings)
        kept = tokenizer.select_layouts(chosen)
        infos: list[dict[str, Any] | None] = [tokenizer.last_budget_info] * len(kept)
        if tokenizer.last_budget_info is not None and "dropped" in tokenizer.last_budget_info:
            infos = [{**tokenizer.last_budget_info, "dropped": n} for n in tokenizer.last_budget_info["dropped"]]
        found = iter(zip(kept, infos, strict=True))
        both = [next(found) if good else (everything(), None) for good in readable]
        return [layout for layout, _ in both], [info for _, info in both]

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
        for batch, members in batches:
            self.pack.write(batch, [layouts[i] for i in members], rows, [starts[i] for i in members])
        return rows
