"""Writes a training run as a checkpoint folder: `python -m benchmarks.quality.export --run runs/phase1 --out FOLDER`.

Of several runs, the last one's weights; the card tells of all: `--run runs/phase1 runs/phase2`. A run of which only
its log is left is named by that: `--run docs/quality/phase1_training.jsonl ...`. The weights are stored in bfloat16:
that is how the training forward used them, so nothing it learned is rounded away.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.quality.train import PHASES, Trainer

_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# A small Qwen2-VL that reads codes

`Qwen2VLForConditionalGeneration` with {parameters:.2f} million parameters, trained from scratch by this project,
on drawn scenes only. It answers four kinds of question about them: "Read the code.", "What colour is the
circle?", "How many squares are there?", "Where is the sign?". It knows nothing else and is of no use elsewhere: it
exists to measure what adaptive patches cost in answers, and to make the demonstration read something.

- Weights: bfloat16 safetensors, {megabytes:.1f} MB. Licence: Apache-2.0, as the project.
- Training: `python -m benchmarks.quality.train`, seed 0; benchmarks/quality/README.md says how.
{history}
- Data: `benchmarks/quality/scenes.py`: photographs that scikit-image and scikit-learn bundle, typefaces from pip
  packages. Photographs and typefaces of the `test` split were never seen; see `benchmarks/quality/assets.py`.
- What it answers rightly, in figures, and under which settings: docs/quality.md.
- Limits: writing below 14 px, more than four digits, other words, other questions. Its answers are right or wrong
  without a sign of which.
"""


_PHASES = (
    "phase 1: {}, on upstream's uniform 14-px patches; never a coarse one",
    "phase 2: {}, on under random selection settings and, between them, on uniform patches",
    "phase 2 continued from that checkpoint: {}, with cells left out as well",
)


def export(runs: list[Path], out: Path) -> Path:
    """Saves the last run's model and processor, with a model card that says where they come from."""
    if not runs:
        raise ValueError("no runs, expected phase 1, then phase 2, then as often as it was continued")
    if not (runs[-1] / "state.pt").exists():
        raise FileNotFoundError(f"{runs[-1]} has no state.pt: train first with `python -m benchmarks.quality.train`")
    trainer = Trainer(runs[-1], seed=0, phase=PHASES[1])
    trainer.model.to(torch.bfloat16).save_pretrained(out)
    trainer.processor.save_pretrained(out)
    history = []
    for index, run in enumerate(runs):
        phase = _PHASES[min(index, len(_PHASES) - 1)]
        log = run if run.is_file() else run / "log.jsonl"
        last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        history.append("  - " + phase.format(f"{last['step']} steps, {last['images']} pictures"))
    card = _CARD.format(
        parameters=trainer.model.num_parameters() / 1e6,
        megabytes=sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6,
        history="\n".join(history),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, nargs="+", default=[Path("runs/phase1")], help="phase 1, phase 2, 2 continued, …"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(export(options.run, options.out))


if __name__ == "__main__":
    main()
