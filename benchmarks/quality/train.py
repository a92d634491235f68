"""Trains the benchmark's Qwen2-VL.

Phase 1, from scratch on uniform patches: `python -m benchmarks.quality.train --run runs/phase1`.
Phase 2, on under random selection settings: `python -m benchmarks.quality.train --phase 2 --run runs/phase2`; with
`--origin src/transformers_apt/embedded/model` from the embedded model.

Run the same command again to continue where it stopped. `--steps` may change in between: the curriculum and the
learning rate follow the fraction of the steps that is done. With `--minutes` the learning rate follows the time where
that runs out first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.quality import fast_forward
from benchmarks.quality.canvas import COLOURS
from benchmarks.quality.collate import SLOTS, THINGS, Batch, Prompter
from benchmarks.quality.questions import WORDS
from benchmarks.quality.stream import PHASE1, PHASE2, Stage, batches, held_out
from transformers_apt.embedded.tiny_checkpoint import build_config, build_model, build_processor

_DIGITS = 11


class CellHead(nn.Module):
    """Reads off each merged token what lies in its cell; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [SLOTS * _DIGITS, _DIGITS - 1, len(THINGS), len(COLOURS) + 1]
        self.out = nn.Linear(width, sum(self.sizes))

    def forward(self, merged: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """The loss and the share of digit-holding cells whose digits are all right."""
        slots, present, things, colours = self.out(merged.float()).split(self.sizes, -1)
        slots = slots.unflatten(-1, (SLOTS, _DIGITS))
        inked = batch.slots[..., 0] != _DIGITS - 1
        loss = _balanced(_cross_entropy(slots, batch.slots), inked)
        # which digits, in whatever order: far easier to begin with than the slots
        bag = F.one_hot(batch.slots, _DIGITS).amax(-2)[..., :-1].float()
        loss = loss + _balanced(F.binary_cross_entropy_with_logits(present, bag, reduction="none").sum(-1), inked)
        covered = batch.things > 0
        loss = loss + 0.5 * _balanced(_cross_entropy(things, batch.things), covered)
        loss = loss + 0.5 * _balanced(_cross_entropy(colours, batch.colours), covered)
        right = (slots.argmax(-1) == batch.slots).all(-1)[inked]
        return loss, right.float().mean().item() if len(right) else math.nan


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Per element of `target`; the classes are the last axis of `logits`."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)


def _balanced(each: Tensor, marked: Tensor) -> Tensor:
    """Mean loss over the marked cells plus half the mean over the others: most cells are empty."""
    total = each[~marked].mean() * 0.5 if (~marked).any() else each.new_zeros(())
    return total + each[marked].mean() if marked.any() else total


def make_optimizers(model: nn.Module, head: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks and the merger, AdamW for everything else."""
    matrices, rest = [], list(head.parameters())
    for name, parameter in model.named_parameters():
        inside = parameter.dim() == 2 and ("blocks." in name or "layers." in name or "merger." in name)
        (matrices if inside else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw", ns_steps=4),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


@dataclass(frozen=True)
class Phase:
    """What one phase of the training is."""

    stages: tuple[Stage, ...]
    lr: float
    hold: float  # share of the steps before the learning rate starts to fall
    warmup: int
    aux: bool  # whether the tower is also taught cell by cell
    steps: int

    def lr_at(self, step: int, fraction: float) -> float:
        """Warm up, hold, then fall linearly to 3 %; `fraction` of the training is done."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.lr * rise * min(1.0, max(0.03, (1 - fraction) / (1 - self.hold)))

    def aux_at(self, fraction: float) -> float:
        """Full until 75 % of the training, gone at 95 %."""
        return min(1.0, max(0.0, (0.95 - fraction) / 0.2)) if self.aux else 0.0


PHASES = {
    1: Phase(PHASE1, lr=4e-3, hold=0.25, warmup=150, aux=True, steps=34000),
    2: Phase(PHASE2, lr=1.5e-3, hold=0.2, warmup=50, aux=False, steps=4500),
}


@dataclass(frozen=True)
class Plan:
    """How far, and with what, a run is trained."""

    steps: int
    seed: int
    patches: int = 3072  # per step
    watch_every: int = 250
    stop: int | None = None  # leave after this step
    seconds: float = math.inf  # leave after so many, those of earlier calls included
    workers: int = 1  # processes that draw batches


@torch.no_grad()
def watch(model, evaluation: list[Batch]) -> dict[str, float]:
    """Share of held-out questions whose every answer token is the most likely one, by question type.

    That is exact match under greedy generation: the first wrong token would change the answer.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    w = fast_forward.weights(model, torch.bfloat16)
    for batch in evaluation:
        batch = batch.to(model.device)
        merged = fast_forward.tower(w, model.config, batch)
        logits, labels = fast_forward.answer_logits(w, model.config, merged, batch)
        rows = (batch.labels >= 0).nonzero()[:, 0]
        wrong = set(rows[logits.argmax(-1) != labels].tolist())
        for row, names in enumerate(batch.types):
            hits[names[0]].append(row not in wrong)
    return {name: round(sum(found) / len(found), 4) for name, found in sorted(hits.items())}


class Trainer:
    """Model, optimizers and the place they are kept; `origin` is a run, or a checkpoint folder, to start from."""

    def __init__(self, run: Path, seed: int, phase: Phase, origin: Path | None = None, device: str = "cpu") -> None:
        self.run, self.phase = run, phase
        run.mkdir(parents=True, exist_ok=True)
        self.processor = build_processor(WORDS)
        self.model = build_model(build_config("demo", self.processor.tokenizer), seed).train().to(device)
        torch.manual_seed(seed)
        self.head = CellHead(self.model.config.text_config.hidden_size).to(device)
        self.optimizers = make_optimizers(self.model, self.head, phase.lr)
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.state = run / "state.pt"
        if self.state.exists():
            self._load()
        elif origin is not None:
            self.model.load_state_dict(weights_of(origin))

    def _load(self) -> None:
        state = torch.load(self.state, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        torch.set_rng_state(state["rng"])
        self.step, self.images, self.seconds = state["step"], state["images"], state.get("seconds", 0.0)

    def save(self) -> None:
        """Writes the state beside the old one, then takes its place: an interruption loses nothing."""
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(),
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
        }
        torch.save(state, self.state.with_suffix(".new"))
        os.replace(self.state.with_suffix(".new"), self.state)

    def log(self, record: dict[str, Any]) -> None:
        with open(self.run / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def train_step(self, batch: Batch, fraction: float) -> dict[str, float]:
        """One step, after `fraction` of the training."""
        batch = batch.to(self.model.device)
        weight = self.phase.aux_at(fraction)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.phase.lr_at(self.step, fraction)
        w = fast_forward.weights(self.model, torch.bfloat16)
        merged = fast_forward.tower(w, self.model.config, batch)
        loss, found = merged.new_zeros((), dtype=torch.float32), {}
        if weight > 0:
            aux, found["cells"] = self.head(merged, batch)
            loss, found["aux"] = weight * aux, aux.item()
        if batch.ids is not None:
            logits, labels = fast_forward.answer_logits(w, self.model.config, merged, batch)
            answer = F.cross_entropy(logits, labels)
            loss, found["answer"] = loss + answer, answer.item()
            found["tokens"] = (logits.argmax(-1) == labels).float().mean().item()
        if loss.requires_grad:
            loss.backward()
            parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.images += len(batch.patches)
        return found


def weights_of(origin: Path) -> dict[str, Tensor]:
    """The weights of a run's folder, or of a checkpoint's."""
    if (origin / "state.pt").exists():
        return torch.load(origin / "state.pt", weights_only=True, map_location="cpu")["model"]
    if (origin / "config.json").exists():
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration.from_pretrained(origin, dtype=torch.float32).state_dict()
    raise FileNotFoundError(
        f"{origin} has no state.pt and is no checkpoint: train phase 1 there first, or pass --origin"
    )


def train(trainer: Trainer, plan: Plan) -> None:
    """Trains as planned, or until it is asked to end (SIGTERM, Ctrl-C): then it saves and leaves."""
    ended: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: ended.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        _train(trainer, plan, ended)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    trainer.save()


def _train(trainer: Trainer, plan: Plan, ended: list[int]) -> None:
    steps, tokenizer = plan.steps, trainer.processor.tokenizer
    evaluation = held_out(plan.seed, 240, Prompter(tokenizer))
    sums: dict[str, list[float]] = defaultdict(list)
    began = saved = time.monotonic()
    started, first = began - trainer.seconds, trainer.images
    bar = tqdm(total=steps, initial=trainer.step, unit="step", mininterval=5, smoothing=0.05)
    drawn = batches(trainer.step, steps, plan.seed, plan.patches, tokenizer, trainer.phase.stages, plan.workers)
    for batch in drawn:
        fraction = max(trainer.step / steps, trainer.seconds / plan.seconds)
        for key, value in trainer.train_step(batch, fraction).items():
            if not math.isnan(value):
                sums[key].append(value)
        trainer.seconds = time.monotonic() - started
        bar.update()
        done = trainer.step in (steps, plan.stop) or trainer.seconds >= plan.seconds or bool(ended)
        if trainer.step % plan.watch_every == 0 or done:
            means = {key: round(sum(values) / len(values), 4) for key, values in sums.items()}
            record = {"step": trainer.step, "steps": steps, "images": trainer.images, **means}
            record["images_per_s"] = round((trainer.images - first) / (time.monotonic() - began), 1)
            if not trainer.phase.aux or trainer.step >= 0.1 * steps:
                record["held_out"] = watch(trainer.model, evaluation)
            trainer.log(record)
            bar.write(json.dumps(record))
            sums.clear()
            began, first = time.monotonic(), trainer.images
        if done or time.monotonic() - saved > 240:
            trainer.save()
            saved = time.monotonic()
        if done:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", type=int, default=1, choices=sorted(PHASES))
    parser.add_argument("--run", type=Path, help="folder of the state and the log; runs/phase1 or runs/phase2")
    parser.add_argument(
        "--origin", type=Path, default=Path("runs/phase1"), help="a run or a checkpoint to start phase 2 from"
    )
    parser.add_argument("--steps", type=int, help="34000 for phase 1, 4500 for phase 2")
    parser.add_argument("--stop", type=int, help="leave after this step, to be continued")
    parser.add_argument("--minutes", type=float, default=math.inf, help="leave after so many, earlier calls included")
    parser.add_argument("--lr", type=float, help="learning rate, in place of the phase's")
    parser.add_argument("--patches", type=int, default=3072, help="vision patches per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch-every", type=int, default=250, help="steps between lines of the log")
    parser.add_argument("--threads", type=int, default=1, help="compute threads")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_APT", "0")  # nothing here needs the patch
    torch.set_num_threads(options.threads)
    phase = PHASES[options.phase]
    phase = replace(phase, lr=options.lr or phase.lr, steps=options.steps or phase.steps)
    run = options.run or Path(f"runs/phase{options.phase}")
    trainer = Trainer(run, options.seed, phase, options.origin if options.phase == 2 else None, options.device)
    plan = Plan(
        phase.steps,
        seed=options.seed + 1000 * (options.phase - 1),
        patches=options.patches,
        watch_every=options.watch_every,
        stop=options.stop,
        seconds=60 * options.minutes,
        workers=options.workers,
    )
    train(trainer, plan)


if __name__ == "__main__":
    main()
