"""Writes a training run as a checkpoint folder: `python -m benchmarks.quality.export --run runs/phase1 --out FOLDER`.

The weights are stored in bfloat16: that is how the training forward used them, so nothing it learned is rounded away.
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
base_model: none
pipeline_tag: image-text-to-text
---
# A small Qwen2-VL that reads codes

`Qwen2VLForConditionalGeneration` with {parameters:.2f} million parameters, trained from scratch by this project, on
one CPU core, on drawn scenes only. It answers four kinds of question about them: "Read the code.", "What colour is the
circle?", "How many squares are there?", "Where is the sign?". It knows nothing else and is of no use elsewhere: it
exists to measure what adaptive patches cost in answers, and to make the demonstration read something.

- Training: {step} steps, {images} pictures, of {plan}. Command: `{command}`.
- Data: `benchmarks/quality/scenes.py`: photographs that scikit-image and scikit-learn bundle, typefaces from pip
  packages. Photographs and typefaces of the `test` split were never seen; see `benchmarks/quality/assets.py`.
- Patches: {patches}.
- Last line of the training log: `{last}`
"""


def export(run: Path, out: Path, command: str, patches: str) -> Path:
    """Saves the run's model and processor, with a model card that says where they come from."""
    if not (run / "state.pt").exists():
        raise FileNotFoundError(f"{run} has no state.pt: train first with `python -m benchmarks.quality.train`")
    trainer = Trainer(run, seed=0, phase=PHASES[1])
    trainer.model.to(torch.bfloat16).save_pretrained(out)
    trainer.processor.save_pretrained(out)
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    card = _CARD.format(
        parameters=trainer.model.num_parameters() / 1e6,
        step=trainer.step,
        images=trainer.images,
        plan=f"{last['steps']} planned steps",
        command=command,
        patches=patches,
        last=lines[-1],
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/phase1"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", default="python -m benchmarks.quality.train", help="how the run was trained")
    parser.add_argument("--patches", default="uniform 14-px patches only (upstream's); never a coarse one")
    options = parser.parse_args()
    print(export(options.run, options.out, options.command, options.patches))


if __name__ == "__main__":
    main()
