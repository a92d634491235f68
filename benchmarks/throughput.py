"""Does preprocessing scale with worker processes? `python -m benchmarks.throughput`.

A DataLoader over 1,000 photos (crops of the bundled ones, of many sizes), from PIL images to `pixel_values`, upstream
next to the other settings, with no worker and with more and more of them.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import Qwen2VLImageProcessor
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import METHODS, UPSTREAM, hardware, report
from benchmarks.retention import photos

COMPARED = (UPSTREAM, "recommended", "v1", "budget 0.3", "budget 0.3 upsample_mse")
SIDES = (224, 640)
"""Shortest and longest side of a crop in pixels."""


class Crops(Dataset[int]):
    """`count` random crops of the bundled photos; an item is the number of vision patches that it became.

    The rows themselves stay in the worker: how fast a pipe carries them is not what is measured.
    """

    def __init__(self, count: int, settings: dict[str, Any], model: str | None = None) -> None:
        self.photos = list(photos().values())
        self.count = count
        self.settings = settings
        self.processor = Qwen2VLImageProcessor.from_pretrained(model) if model else Qwen2VLImageProcessor()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return len(self.processor(self.crop(index), return_tensors="pt", **self.settings)["pixel_values"])

    def crop(self, index: int) -> Image.Image:
        choose = random.Random(index)
        photo = choose.choice(self.photos)
        width, height = (min(choose.randint(*SIDES), side) for side in photo.size)
        left, top = choose.randint(0, photo.width - width), choose.randint(0, photo.height - height)
        return photo.crop((left, top, left + width, top + height))


def start_worker(_: int) -> None:
    """A worker has one core: more threads would only get in each other's way."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()


def photos_per_second(crops: Mapping[str, Crops], workers: int, rounds: int) -> dict[str, float]:
    """Median over `rounds` of reading all crops, the start of the workers kept out. Settings take turns in a round."""
    loaders = {
        name: DataLoader(
            of_one, batch_size=8, num_workers=workers, worker_init_fn=start_worker, persistent_workers=workers > 0
        )
        for name, of_one in crops.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in crops}
    for round_ in range(rounds + 1):
        for name, loader in loaders.items():
            start = time.perf_counter()
            for _ in loader:
                pass
            if round_:  # the first round starts the workers
                seconds[name].append(time.perf_counter() - start)
    return {name: len(crops[name]) / statistics.median(found) for name, found in seconds.items()}


def main(
    count: Annotated[int, typer.Option(min=8, help="Photos.")] = 1000,
    workers: Annotated[
        list[int] | None, typer.Option(min=0, help="Worker processes, repeatable; default: 0, 1, 2, 4, … cores.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 3,
    model: Annotated[str | None, typer.Option(help="Whose image processor: a folder or hub id of any family.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure photos per second and write `throughput.json`, a table and a plot."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    cores = os.cpu_count() or 1
    steps = workers or [0, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)]
    rows: list[dict[str, Any]] = []
    for number in tqdm(steps, desc="workers"):
        rates = photos_per_second({name: Crops(count, METHODS[name], model) for name in COMPARED}, number, rounds)
        for name, rate in rates.items():
            alone = next((row["photos/s"] for row in rows if row["method"] == name), rate)
            rows.append(
                {
                    "workers": number,
                    "method": name,
                    "photos/s": rate,
                    "of the first": rate / alone,
                    "of upstream": rate / rates[UPSTREAM],
                }
            )

    def plot(axes: Any) -> None:
        for name in COMPARED:
            found = [row for row in rows if row["method"] == name]
            axes.plot([row["workers"] for row in found], [row["photos/s"] for row in found], "o-", label=name)
        axes.set(xlabel="worker processes", ylabel="photos per second", ylim=(0, None), xticks=steps)
        axes.legend()

    report(
        output, "throughput", rows, {"hardware": hardware(), "photos": count, "rounds": rounds, "model": model}, plot
    )


if __name__ == "__main__":
    typer.run(main)
