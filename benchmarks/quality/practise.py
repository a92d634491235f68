"""Lets a model practise by self-distillation on drawn scenes.

`python -m benchmarks.quality.practise --out runs/branch`

Endless fresh pictures, the training photographs and typefaces only; no answers are shown, since the model at full
resolution is the teacher. `--student lora` practises LoRA on tower and merger instead of the branch, for the same
time. Run the same command again to go on. What it came to is asked for with
`python -m benchmarks.quality.evaluate --model … --adapter runs/branch`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

import transformers_apt
from benchmarks.quality.collate import CELL
from benchmarks.quality.items import generated
from benchmarks.quality.stream import PHASE2, sample
from transformers_apt.cli.practising import practise
from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.training.agreement import as_table
from transformers_apt.training.pairs import Pair
from transformers_apt.training.practice import GotWorseError, Plan, Practice, make_accelerator
from transformers_apt.training.students import STUDENTS


class DrawnPairs:
    """Scenes of the training split, a question about each: a function of (seed, number)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, index: int) -> Pair:
        rng, stage = np.random.default_rng([self.seed, 31, index]), PHASE2[0]
        height, width = (int(side) * CELL for side in rng.integers(stage.cells[0], stage.cells[1] + 1, 2))
        scene, asked = sample(rng, "train", height, width, stage.px, stage.most)
        return Pair(scene.image, asked[int(rng.integers(len(asked)))].text)


def held_out(count: int, seed: int) -> list[Pair]:
    """Questions about scenes of the test split, not those that an evaluation asks (its seed is 1)."""
    return [Pair(item.load(), item.question) for item in generated(count, 1000 + seed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder; without it, the embedded model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="branch", choices=sorted(STUDENTS))
    parser.add_argument("--minutes", type=float, default=25.0, help="earlier calls included")
    parser.add_argument("--steps", type=float, default=math.inf, help="stop after so many, if minutes are left")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--views", type=int, default=2, help="settings under which each picture is read")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=200, help="questions to judge by, before and after")
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers_apt.apply()
    accelerator = make_accelerator()
    model, processor = load_checkpoint(options.model, str(accelerator.device), "float32")
    plan = Plan(
        student=options.student,
        minutes=options.minutes,
        steps=options.steps,
        batch=options.batch,
        views=options.views,
        lr=options.lr,
        max_new_tokens=8,
        seed=options.seed,
        workers=options.workers,
    )
    exam = held_out(options.held_out, options.seed)
    practice = Practice(accelerator, model, processor, DrawnPairs(options.seed), exam, plan, options.out)
    first, began = practice.step, time.monotonic()
    practise(practice)
    pictures, seconds = (practice.step - first) * plan.batch, time.monotonic() - began
    after = practice.agreement()
    if accelerator.is_main_process:
        print(f"{pictures} pictures in this call, {pictures / seconds:.2f} a second\n")
        print(as_table(practice.before, after))
    try:
        practice.save(after)
    except GotWorseError as error:
        raise SystemExit(f"worse: {error}") from error


if __name__ == "__main__":
    main()
