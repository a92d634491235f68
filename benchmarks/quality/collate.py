"""Turns scenes into training batches: patch rows, token ids, positions, labels and per-cell targets.

All pictures of a batch have one size, so that attention runs batched and nothing is padded but the end of the text.

Axes: b picture, h w grid of 14-px patches, n = h·w patches, m = n/4 merged cells of 28 px, l text and picture tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.quality.canvas import COLOURS, SHAPES, Scene
from benchmarks.quality.questions import Question

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

PATCH, CELL, SLOTS, NO_DIGIT, IGNORE = 14, 28, 4, 10, -100
THINGS = ("nothing", *SHAPES, "bar", "sign", "code")
_COLOUR_INDEX = {name: index + 1 for index, name in enumerate(COLOURS)}


@dataclass
class Mixed:
    """Where the patches of mixed-scale pictures lie; rows are padded to the longest of the batch."""

    centres: Tensor  # (b, n, 2) float32 (row, col), in 14-px units
    sizes: Tensor  # (b, n) int64: side of each patch, in 14-px units; 1 where there is none
    valid: Tensor  # (b, n) bool
    sources: Tensor  # (b, t, 4) int64: the patches that the merger reads for each language token
    tokens: Tensor  # (b, t) bool: which of them exist


@dataclass
class Batch:
    """What one training step needs; `ids` is None for pictures without questions."""

    patches: Tensor  # (b, n, 588) uint8 or float32 grey levels, canonical order, channel-first pixels of one frame
    grid: tuple[int, int]  # (h, w)
    slots: Tensor  # (b, m, SLOTS) int64: the digits whose centre lies in the cell, in reading order, then NO_DIGIT
    things: Tensor  # (b, m) int64: index into THINGS of what covers the cell's centre
    colours: Tensor  # (b, m) int64: 0 or 1 + index into COLOURS of that thing
    ids: Tensor | None = None  # (b, l) int64
    labels: Tensor | None = None  # (b, l) int64: the next token where it belongs to an answer, else IGNORE
    positions: Tensor | None = None  # (3, b, l) int64, M-RoPE
    types: list[list[str]] | None = None  # question types of each picture, in order
    mixed: Mixed | None = None  # None: uniform patches

    def to(self, device: str) -> Batch:
        """The same batch with its tensors on a device."""
        mixed = self.mixed and replace(self.mixed, **_moved(self.mixed, device))
        return replace(self, **_moved(self, device), mixed=mixed)


def _moved(batch: Batch | Mixed, device: str) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}


def to_patches(image: np.ndarray) -> np.ndarray:
    """(h·14, w·14, 3) -> (n, 3·14·14): upstream's row order and channel order, one frame instead of two."""
    height, width, _ = image.shape
    gh, gw = height // CELL, width // CELL
    # (gh, 2, p, gw, 2, p, c) -> (gh, gw, 2, 2, c, p, p)
    cells = image.reshape(gh, 2, PATCH, gw, 2, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(cells).reshape(gh * gw * 4, 3 * PATCH * PATCH)


def cell_targets(scene: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per merged cell of the `height` by `width` picture: digit slots, thing, colour."""
    gh, gw = height // CELL, width // CELL
    sy, sx = height / scene.image.height, width / scene.image.width
    slots = np.full((gh, gw, SLOTS), NO_DIGIT, np.int64)
    filled = np.zeros((gh, gw), np.int64)
    for glyph in sorted(scene.glyphs, key=lambda glyph: (glyph.y, glyph.x)):
        row, col = int(glyph.y * sy // CELL), int(glyph.x * sx // CELL)
        if 0 <= row < gh and 0 <= col < gw and filled[row, col] < SLOTS:
            slots[row, col, filled[row, col]] = glyph.digit
            filled[row, col] += 1
    things, colours = np.zeros((gh, gw), np.int64), np.zeros((gh, gw), np.int64)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        rows = slice(max(0, int(np.ceil(top * sy / CELL - 0.5))), int(np.floor(bottom * sy / CELL - 0.5)) + 1)
        cols = slice(max(0, int(np.ceil(left * sx / CELL - 0.5))), int(np.floor(right * sx / CELL - 0.5)) + 1)
        things[rows, cols] = THINGS.index(thing.kind)
        colours[rows, cols] = _COLOUR_INDEX.get(thing.colour or "", 0)
    return slots.reshape(-1, SLOTS), things.reshape(-1), colours.reshape(-1)


class Prompter:
    """Token ids of conversations about one picture, equal to tokenizing the chat template's output."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.pad_id = tokenizer.pad_token_id
        self.encode = cache(lambda text: tuple(tokenizer.encode(text)))
        self.head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        self.first = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
        self.later = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

    def tokens(self, cells: int, asked: list[Question]) -> tuple[list[int], list[int]]:
        """(ids, labels) of the conversation; the label of a position is the answer token that follows it."""
        ids = [*self.encode(self.head), *[self.image_id] * cells]
        labels = [IGNORE] * len(ids)
        for index, question in enumerate(asked):
            prompt = self.encode((self.later if index else self.first).format(question.text))
            answer = (*self.encode(question.answer), *self.encode("<|im_end|>"))
            ids += [*prompt, *answer]
            labels += [IGNORE] * (len(prompt) - 1) + [*answer, IGNORE]
        return ids, labels

    def positions(self, grid: tuple[int, int], length: int, cells: np.ndarray | None = None) -> np.ndarray:
        """(3, l) M-RoPE positions of a conversation of `length` tokens about a picture of `grid` patches.

        `cells` (t, 2) names the merged cell of each picture token; by default every cell, in raster order.
        """
        gh, gw, start = grid[0] // 2, grid[1] // 2, len(self.encode(self.head))
        row, col = np.divmod(np.arange(gh * gw), gw) if cells is None else cells.T
        image = start + np.stack([np.zeros_like(row), row, col])
        after = start + max(gh, gw) + np.arange(length - start - len(row))
        before = np.arange(start)
        return np.concatenate([np.stack([before] * 3), image, np.stack([after] * 3)], axis=1)


def collate(samples: list[tuple[Scene, list[Question]]], height: int, width: int, prompter: Prompter | None) -> Batch:
    """One batch of pictures resized to `height` by `width`; without a prompter the questions are left out."""
    rows, slots, things, colours = [], [], [], []
    for scene, _ in samples:
        image = scene.image
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        rows.append(to_patches(np.asarray(image)))
        for target, into in zip(cell_targets(scene, height, width), (slots, things, colours), strict=True):
            into.append(target)
    grid = (height // PATCH, width // PATCH)
    batch = Batch(
        torch.from_numpy(np.stack(rows)),
        grid,
        torch.from_numpy(np.stack(slots)),
        torch.from_numpy(np.stack(things)),
        torch.from_numpy(np.stack(colours)),
    )
    if prompter is None:
        return batch
    add_questions(batch, [asked for _, asked in samples], prompter)
    return batch


def add_questions(
    batch: Batch, asked: list[list[Question]], prompter: Prompter, cells: list[np.ndarray] | None = None
) -> None:
    """Fills in the text of a batch; `cells` (t, 2) are the merged cells of each picture's tokens, if not all."""
    every = batch.grid[0] * batch.grid[1] // 4
    counts = [every] * len(asked) if cells is None else [len(found) for found in cells]
    pairs = [prompter.tokens(count, questions) for count, questions in zip(counts, asked, strict=True)]
    length = max(len(ids) for ids, _ in pairs)
    length = -(-length // 8) * 8
    batch.ids = torch.tensor([ids + [prompter.pad_id] * (length - len(ids)) for ids, _ in pairs])
    batch.labels = torch.tensor([labels + [IGNORE] * (length - len(labels)) for _, labels in pairs])
    if cells is None:
        one = torch.from_numpy(prompter.positions(batch.grid, length))
        batch.positions = one[:, None].expand(3, len(pairs), length)
    else:
        each = [prompter.positions(batch.grid, length, found) for found in cells]
        batch.positions = torch.from_numpy(np.stack(each, 1))
    batch.types = [[question.type for question in questions] for questions in asked]
