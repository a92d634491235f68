"""Trials without training, of what the product does not do: `python -m benchmarks.quality.trials attention`.

- `attention`: a coarse patch weighs in attention as the patches it stands for.
- `filter`: a coarse patch is the mean of its 14-px blocks, which keeps gradients as steep as they are.
- `price`: what `joint` takes a language token to cost.
- `thresholds`: `v1` with a looser threshold at 56 px than at 28 px.

Scored as in training: every answer token the most likely one, which is exact match under greedy generation.
docs/experiments.md has the outcome.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import pack_patches
from apt_code.selection import joint
from benchmarks.quality import fast_forward
from benchmarks.quality.canvas import Scene
from benchmarks.quality.collate import Batch, Prompter
from benchmarks.quality.items import generated
from benchmarks.quality.mixed import collate_mixed
from benchmarks.quality.questions import Question
from benchmarks.quality.train import PHASES, Trainer


def _method(name: str, importance: str = "upsample_mse", **options: Any) -> dict[str, Any]:
    return {"patch_selection_method": name, "importance_method": importance, **options}


def block_means(images: Tensor, layouts: Sequence[PatchLayout], patch_size: int) -> Tensor:
    """As `pack_patches`, but a coarse patch is the mean of its base-patch blocks."""
    found = []
    for image, layout in zip(images.float(), layouts, strict=True):
        for row, col, size in layout.patches.tolist():
            side = size * patch_size
            cell = image[:, row * patch_size :, col * patch_size :][:, :side, :side]
            found.append(rearrange(cell, "c (a p) (b q) -> (a b) c p q", p=patch_size, q=patch_size).mean(0))
    return torch.stack(found)


@dataclass(frozen=True)
class Variant:
    """One way of asking all the questions."""

    title: str
    selection: dict[str, Any] | None
    weigh_tower: bool = False
    weigh_text: bool = False
    pack: Callable[..., Tensor] = pack_patches
    token_price: float = joint.TOKEN_PRICE


_BUDGETS = {f"budget {alpha}": _method("budget", alpha=alpha) for alpha in (0.2, 0.3)}
_COARSE = _BUDGETS | {"v1 12 RMS": _method("v1", thresholds=[144.0, 144.0])}
_FINE = {"budget 0.3": _BUDGETS["budget 0.3"], "v1 6 RMS": _method("v1", thresholds=[36.0, 36.0])}

TRIALS: dict[str, list[Variant]] = {
    "attention": [
        Variant(f"{name}{title}", selection, *flags)
        for name, selection in _COARSE.items()
        for title, flags in (("", ()), (", tower weighted", (True,)), (", tower and text weighted", (True, True)))
    ],
    "filter": [
        Variant(f"{name}, {title}", selection, pack=pack)
        for name, selection in _FINE.items()
        for title, pack in (("area average", pack_patches), ("mean of blocks", block_means))
    ],
    "price": [Variant("budget 0.3", _BUDGETS["budget 0.3"])]
    + [
        Variant(f"joint 0.3, {price} patches a token", _method("joint", alpha=0.3), token_price=price)
        for price in (0.0, 2.0, 5.0, 10.0)
    ],
    "thresholds": [
        Variant(f"v1 [{fine}, {coarse}] RMS", _method("v1", thresholds=[float(fine**2), float(coarse**2)]))
        for fine, coarse in ((4, 4), (4, 8), (4, 12), (6, 6), (6, 12), (6, 16), (8, 8), (8, 16))
    ],
}


def batches(count: int, seed: int, variant: Variant, prompter: Prompter) -> list[tuple[Batch, str]]:
    """The evaluation's own questions, one picture a batch."""
    found = []
    for item in generated(count, seed):
        image = item.load()
        height, width = (round(side / 28) * 28 for side in (image.height, image.width))
        sample = (Scene("", image), [Question(item.groups[0], item.question, item.answers[0])])
        batch = collate_mixed([sample], height, width, prompter, variant.selection, variant.pack)
        found.append((batch, item.groups[0]))
    return found


@torch.no_grad()
def ask(model, asked: list[tuple[Batch, str]], variant: Variant) -> dict[str, float]:
    """Mean patches and tokens, and accuracy in per cent by question type."""
    w, hits, sizes = fast_forward.weights(model, torch.bfloat16), defaultdict(list), defaultdict(list)
    for batch, kind in asked:
        merged = fast_forward.tower(w, model.config, batch, proportional=variant.weigh_tower)
        logits, labels = fast_forward.answer_logits(w, model.config, merged, batch, proportional=variant.weigh_text)
        for name in ("all", kind):
            hits[name].append(bool((logits.argmax(-1) == labels).all()))
        sizes["patches"].append(batch.patches.shape[1])
        sizes["tokens"].append(merged.shape[1])
    means = {name: round(sum(found) / len(found), 1) for name, found in sizes.items()}
    return means | {name: round(100 * sum(found) / len(found), 1) for name, found in sorted(hits.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=sorted(TRIALS))
    parser.add_argument("--run", type=Path, default=Path("runs/phase1"), help="a training run's folder")
    parser.add_argument("--count", type=int, default=900, help="how many questions")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.run / "state.pt").exists():
        raise FileNotFoundError(
            f"{options.run} has no state.pt: train first with `python -m benchmarks.quality.train`"
        )
    trainer = Trainer(options.run, 0, PHASES[1])
    prompter = Prompter(trainer.processor.tokenizer)
    for variant in [Variant("off", None), *TRIALS[options.trial]]:
        joint.TOKEN_PRICE = variant.token_price
        found = ask(trainer.model, batches(options.count, options.seed, variant, prompter), variant)
        print(json.dumps({"trial": variant.title, "n": options.count, **found}), flush=True)


if __name__ == "__main__":
    main()
