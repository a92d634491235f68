"""What one step of practice reads: the pictures at full resolution for the teacher, under random settings for the
student. Step number i is a function of (seed, i) alone, however many processes share it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from transformers_apt.training.pairs import Pair, Pairs
from transformers_apt.training.random_settings import draw_settings
from transformers_apt.training.teacher import FULL_RESOLUTION, Answer, chat_prompt


@dataclass(frozen=True)
class Share:
    """A process's share of every step.

    Attributes:
        batch: pairs of a step, of all processes together.
        views: how often a student reads each picture, under other settings each time.
        rank, processes: which process this is, of how many; `processes` divides `batch`.
        seed: of the settings.
        answers: folder of the answers that are known already.
    """

    batch: int
    views: int
    rank: int
    processes: int
    seed: int
    answers: Path


@dataclass(frozen=True)
class Step:
    """A process's share of one step.

    Attributes:
        students: `views` of each pair, one pair after the other, each as the processor returned it.
        known: the teacher's answer to each pair, `None` where it has to be asked.
        keys: the files to keep these in, `None` for those not to be kept.
        teacher: the inputs of those that have to be asked, padded on the left; `None` where all are known.
    """

    students: list[Any]
    known: list[Answer | None]
    keys: list[Path | None]
    teacher: Any | None


def full_resolution(processor: Any, pairs: list[Pair]) -> Any:
    """The teacher's inputs."""
    return processor(
        text=[chat_prompt(processor, pair.prompt) for pair in pairs],
        images=[pair.image for pair in pairs],
        images_kwargs=FULL_RESOLUTION,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def view(processor: Any, pair: Pair, settings: dict[str, Any]) -> Any:
    """A student's inputs, a batch of one."""
    text = chat_prompt(processor, pair.prompt)
    return processor(text=[text], images=[pair.image], images_kwargs=settings, return_tensors="pt")


def make_step(number: int, pairs: Pairs, processor: Any, share: Share) -> Step:
    """Step `number` of practice, as far as it is this process's."""
    each = share.batch // share.processes
    first = number * share.batch + share.rank * each
    chosen = [pairs[index] for index in range(first, first + each)]
    keys = [None if pair.key is None else share.answers / f"{pair.key}.safetensors" for pair in chosen]
    known = [Answer.load(file) if file is not None and file.exists() else None for file in keys]
    unknown = [pair for pair, found in zip(chosen, known, strict=True) if found is None]
    students = [
        view(processor, pair, draw_settings(np.random.default_rng([share.seed, first + place, turn])))
        for place, pair in enumerate(chosen)
        for turn in range(share.views)
    ]
    return Step(students, known, keys, full_resolution(processor, unknown) if unknown else None)


class _Stream(IterableDataset):
    def __init__(self, start: int, pairs: Pairs, processor: Any, share: Share) -> None:
        self.start, self.pairs, self.processor, self.share = start, pairs, processor, share

    def __iter__(self) -> Iterator[Step | Exception]:
        worker = get_worker_info()
        if worker is not None:
            torch.set_num_threads(1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the handler of practice is not for this process
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        number, turns = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        number += self.start
        while True:
            try:
                step = make_step(number, self.pairs, self.processor, self.share)
            except (OSError, ValueError) as error:
                yield error  # raised here, it would arrive as a text with a traceback in it
                return
            yield step
            number += turns


def steps_from(start: int, pairs: Pairs, processor: Any, share: Share, workers: int) -> Iterator[Step]:
    """The steps from number `start` on, without end, prepared by `workers` other processes in turn."""
    stream = _Stream(start, pairs, processor, share)
    for found in DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None):
        if isinstance(found, Exception):
            raise found
        yield found
