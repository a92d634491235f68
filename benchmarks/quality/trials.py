"""Trials of the model side, without training: `python -m benchmarks.quality.trials --run runs/phase1`.

Each trial changes how the model takes mixed-scale patches, and asks the held-out questions again. Scored as in
training: every answer token the most likely one, which is exact match under greedy generation.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import fast_forward
from benchmarks.quality.canvas import Scene
from benchmarks.quality.collate import Batch, Prompter
from benchmarks.quality.items import generated
from benchmarks.quality.mixed import collate_mixed
from benchmarks.quality.questions import Question
from benchmarks.quality.report import summary
from benchmarks.quality.train import PHASES, Trainer

SELECTIONS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "budget upsample_mse 0.2": {
        "patch_selection_method": "budget",
        "alpha": 0.2,
        "importance_method": "upsample_mse",
    },
    "budget upsample_mse 0.3": {
        "patch_selection_method": "budget",
        "alpha": 0.3,
        "importance_method": "upsample_mse",
    },
    "v1 upsample_mse 12 RMS": {
        "patch_selection_method": "v1",
        "importance_method": "upsample_mse",
        "thresholds": [144.0, 144.0],
    },
}
TRIALS = {"as it is": (False, False), "weighted tower": (True, False), "weighted tower and text": (True, True)}


def batches(count: int, seed: int, selection: dict[str, Any] | None, prompter: Prompter) -> list[tuple[Batch, str]]:
    """The evaluation's own questions, one picture a batch."""
    found = []
    for item in generated(count, seed):
        image = item.load()
        height, width = (round(side / 28) * 28 for side in (image.height, image.width))
        sample = (Scene("", image), [Question(item.groups[0], item.question, item.answers[0])])
        found.append((collate_mixed([sample], height, width, prompter, selection), item.groups[0]))
    return found


@torch.no_grad()
def ask(model, asked: list[tuple[Batch, str]], trial: tuple[bool, bool]) -> dict[str, dict[str, float]]:
    """Accuracy by question type."""
    w, hits = fast_forward.weights(model, torch.bfloat16), defaultdict(list)
    for batch, kind in asked:
        merged = fast_forward.tower(w, model.config, batch, proportional=trial[0])
        logits, labels = fast_forward.answer_logits(w, model.config, merged, batch, proportional=trial[1])
        for name in ("all", kind):
            hits[name].append(bool((logits.argmax(-1) == labels).all()))
    return {name: summary(found) for name, found in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/phase1"))
    parser.add_argument("--count", type=int, default=900)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.run / "state.pt").exists():
        raise FileNotFoundError(
            f"{options.run} has no state.pt: train first with `python -m benchmarks.quality.train`"
        )
    trainer = Trainer(options.run, 0, PHASES[1])
    for name, selection in SELECTIONS.items():
        asked = batches(options.count, options.seed, selection, Prompter(trainer.processor.tokenizer))
        for title, trial in TRIALS.items():
            if selection is not None or trial == (False, False):
                found = ask(trainer.model, asked, trial)
                shares = {key: round(100 * group["accuracy"], 1) for key, group in found.items()}
                print(json.dumps({"selection": name, "trial": title, "n": options.count, **shares}), flush=True)


if __name__ == "__main__":
    main()
