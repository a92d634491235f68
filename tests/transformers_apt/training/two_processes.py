"""What `test_processes.py` has one process do, and each of two: some steps of a trainer, and of practice."""

import json
import sys
from pathlib import Path

import torch

from examples import train_lora
from transformers_apt.cli import practising
from transformers_apt.training.practice import Plan, make_accelerator


def main(out: Path) -> None:
    processes = make_accelerator().num_processes
    (out / "processes.json").write_text(json.dumps(processes))
    train_lora.main(steps=2, batch=6 // processes, out=out / "lora")
    images = train_lora.EXAMPLES.parent
    rows = practising.rows_of(images, ["Read the code.", "Where is the sign?"], None, held_out=2, seed=0)
    plan = Plan(steps=3, batch=2, views=1, max_new_tokens=4, workers=0, lr=1e-4)
    practising.run(None, "float32", rows, plan, out / "practice")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
