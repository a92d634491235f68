"""The stream of training batches: a curriculum in which batch number i is a function of (seed, i, steps) alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.quality import scenes
from benchmarks.quality.assets import Split
from benchmarks.quality.canvas import Scene
from benchmarks.quality.collate import CELL, Batch, Prompter, collate
from benchmarks.quality.mixed import collate_mixed, draw_selection
from benchmarks.quality.questions import Question, draw

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer


@dataclass(frozen=True)
class Stage:
    """What is shown from a fraction of the training on, until the next stage."""

    start: float
    cells: tuple[int, int]  # shortest and longest side, in 28-px cells
    px: tuple[int, int]  # size of the text
    tower: float  # share of batches that teach the tower only
    drill: float = 0.0  # share of those pictures that are black and white
    most: int = 4  # questions per picture
    mixed: bool = False  # mixed-scale patches under random settings


PHASE1 = (
    Stage(0.00, (3, 4), (18, 28), 1.0, drill=1.0),
    Stage(0.02, (3, 4), (14, 32), 1.0, drill=0.5),
    Stage(0.05, (3, 5), (14, 36), 0.5, drill=0.3, most=2),
    Stage(0.12, (3, 6), (11, 36), 0.5, drill=0.1, most=2),
    Stage(0.45, (3, 6), (9, 28), 0.5, drill=0.05, most=3),
    Stage(0.65, (4, 9), (9, 36), 0.35, most=3),
    Stage(0.82, (5, 12), (8, 48), 0.15, most=3),
    Stage(0.93, (6, 16), (8, 48), 0.0),
)
PHASE2 = (Stage(0.0, (5, 16), (8, 48), 0.0, mixed=True),)
_WEIGHTS = {"photo": 0.26, "page": 0.2, "screenshot": 0.18, "chart": 0.18, "plain": 0.18}


def text_px(rng: np.random.Generator, low: int, high: int) -> int:
    """Log-uniform: every doubling of the size is equally frequent."""
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def sample(rng: np.random.Generator, split: Split, height: int, width: int, px: tuple[int, int], most: int):
    """One scene of about `height` by `width` pixels with at least one question."""
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while True:
        dy, dx = rng.integers(-13, 14, 2) if rng.random() < 0.25 else (0, 0)
        size = text_px(rng, px[0], max(px[0] + 1, min(px[1], width // 3)))
        scene = scenes.make(str(rng.choice(kinds, p=weights)), rng, split, height + int(dy), width + int(dx), size)
        asked = draw(rng, scene, most)
        if asked:
            return scene, asked


def make_batch(index: int, steps: int, seed: int, patches: int, prompter: Prompter, stages=PHASE1) -> Batch:
    """Batch number `index` of `steps`: pictures of one size, together about `patches` patches."""
    rng = np.random.default_rng([seed, index])
    stage = [stage for stage in stages if stage.start <= index / steps][-1]
    gh = int(rng.integers(stage.cells[0], stage.cells[1] + 1))
    gw = int(np.clip(round(gh * np.exp(rng.uniform(-0.5, 0.5))), stage.cells[0], stage.cells[1]))
    if rng.random() < 0.5:
        gh, gw = gw, gh
    height, width, count = gh * CELL, gw * CELL, max(2, patches // (4 * gh * gw))
    if rng.random() < stage.tower:
        pairs: list[tuple[Scene, list[Question]]] = []
        for _ in range(count):
            size = text_px(rng, stage.px[0], min(stage.px[1], height // 2))
            kind = "drill" if rng.random() < stage.drill else "dense"
            pairs.append((scenes.make(kind, rng, "train", height, width, size), []))
        return collate(pairs, height, width, None)
    found = [sample(rng, "train", height, width, stage.px, stage.most) for _ in range(count)]
    if stage.mixed:
        return collate_mixed(found, height, width, prompter, draw_selection(rng))
    return collate(found, height, width, prompter)


class _Stream(IterableDataset):
    def __init__(self, start: int, steps: int, seed: int, patches: int, tokenizer: Qwen2Tokenizer, stages) -> None:
        self.arguments = (steps, seed, patches)
        self.start, self.steps, self.tokenizer, self.stages = start, steps, tokenizer, stages

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the trainer's own handler is not for this process
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prompter, worker = Prompter(self.tokenizer), get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for index in range(self.start + turn, self.steps, turns):
            yield make_batch(index, *self.arguments, prompter, self.stages)


def batches(
    start: int, steps: int, seed: int, patches: int, tokenizer: Qwen2Tokenizer, stages=PHASE1, workers: int = 1
) -> DataLoader:
    """Batches `start` to `steps` in order, drawn by other processes in turn."""
    stream = _Stream(start, steps, seed, patches, tokenizer, stages)
    return DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=max(2, 8 // workers))


def held_out(seed: int, count: int, prompter: Prompter, cells: tuple[int, int] = (8, 12)) -> list[Batch]:
    """Batches of four pictures from the held-out photos and typefaces, one question each, to watch training with."""
    rng = np.random.default_rng([seed, 977])
    found = []
    for _ in range(count // 4):
        height, width = (int(side) * CELL for side in rng.integers(cells[0], cells[1] + 1, 2))
        pairs = [sample(rng, "test", height, width, (8, 40), 4) for _ in range(4)]
        pairs = [(scene, [asked[int(rng.integers(len(asked)))]]) for scene, asked in pairs]
        batch = collate(pairs, height, width, prompter)
        batch.types = [[_bucket(asked[0])] for _, asked in pairs]
        found.append(batch)
    return found


def _bucket(question: Question) -> str:
    if question.type != "read" or question.text_px is None:
        return question.type
    return "read<14" if question.text_px < 14 else "read14-19" if question.text_px < 20 else "read20+"
