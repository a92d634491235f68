"""Trials without training, of what the product does not do: `python -m benchmarks.quality.trials attention`.

- `attention`: a coarse patch weighs in attention as the patches it stands for.
- `filter`: a coarse patch is the mean of its 14-px blocks, which keeps gradients as steep as they are.
- `price`: what `joint` takes a language token to cost.
- `thresholds`: `v1` with a looser threshold at 56 px than at 28 px.
- `bound`: what practice could gain at most, if 28-px patches were read as well as the 14-px ones in their place: their
  language tokens are taken from full resolution.

Scored as in training: every answer token the most likely one, which is exact match under greedy generation.
docs/experiments.md has the outcome.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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
from benchmarks.quality.collate import CELL, Batch, Prompter, collate
from benchmarks.quality.items import generated
from benchmarks.quality.mixed import collate_mixed
from benchmarks.quality.questions import WORDS, Question
from benchmarks.quality.train import weights_of
from transformers_apt.embedded.tiny_checkpoint import build_config, build_model, build_processor


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
    borrow: bool = False  # the tokens of 28-px patches are those of full resolution


_BUDGETS = {f"budget {alpha}": _method("budget", alpha=alpha) for alpha in (0.2, 0.3)}
_COARSE = _BUDGETS | {"v1 12 RMS": _method("v1", thresholds=[144.0, 144.0])}
_FINE = {"budget 0.3": _BUDGETS["budget 0.3"], "v1 6 RMS": _method("v1", thresholds=[36.0, 36.0])}
_BOUND = {
    "v1 4 RMS, drop 2": _method("v1", thresholds=[16.0, 16.0], drop_tolerance=2.0),
    "v1 4 RMS": _method("v1", thresholds=[16.0, 16.0]),
    "v1 10 RMS": _method("v1", thresholds=[100.0, 100.0]),
    "budget 0.3": _BUDGETS["budget 0.3"],
}

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
    "bound": [
        Variant(f"{name}{title}", selection, borrow=borrow)
        for name, selection in _BOUND.items()
        for title, borrow in (("", False), (", 28 px as at full resolution", True))
    ],
}


@dataclass(frozen=True)
class Asked:
    """One picture with one question: under a variant, and at full resolution where the variant borrows from it."""

    batch: Batch
    full: Batch | None
    kind: str


def samples(count: int, seed: int) -> list[tuple[Scene, Question]]:
    """The evaluation's own questions."""
    return [
        (Scene("", item.load()), Question(item.groups[0], item.question, item.answers[0]))
        for item in generated(count, seed)
    ]


def batch_of(scene: Scene, question: Question, variant: Variant, prompter: Prompter) -> Asked:
    """One picture."""
    height, width = (round(side / CELL) * CELL for side in (scene.image.height, scene.image.width))
    sample = [(scene, [question])]
    batch = collate_mixed(sample, height, width, prompter, variant.selection, variant.pack)
    full = collate(sample, height, width, prompter) if variant.borrow else None
    return Asked(batch, full, question.type)


def borrowed(merged: Tensor, at_full: Tensor, batch: Batch) -> Tensor:
    """Language tokens of one picture, those of its 28-px patches from full resolution.

    Args:
        merged: `(1, t, d)`.
        at_full: `(1, m, d)`, one per merge cell, in raster order.
        batch: what `merged` was made from.
    """
    mixed = batch.mixed
    if mixed is None:
        raise ValueError("a batch in uniform patches has nothing to borrow")
    first = mixed.sources[0, :, 0]
    sizes, top = mixed.sizes[0, first], mixed.centres[0, first] - (mixed.sizes[0, first, None] - 1) / 2
    row, col = (top.round().long() // 2).unbind(1)
    chosen = at_full[0, row * (batch.grid[1] // 2) + col]
    return torch.where((sizes == 2)[:, None], chosen, merged[0])[None]


@torch.no_grad()
def ask(model, asked: Iterable[Asked], variant: Variant) -> dict[str, float]:
    """Mean patches and tokens, and accuracy in per cent by question type."""
    w, hits, sizes = fast_forward.weights(model, torch.bfloat16), defaultdict(list), defaultdict(list)
    for one in asked:
        batch, kind = one.batch, one.kind
        merged = fast_forward.tower(w, model.config, batch, proportional=variant.weigh_tower)
        if one.full is not None:
            merged = borrowed(merged, fast_forward.tower(w, model.config, one.full), batch)
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
    parser.add_argument(
        "--origin", type=Path, default=Path("runs/phase1"), help="the folder of a training run, or of a checkpoint"
    )
    parser.add_argument("--count", type=int, default=900, help="how many questions")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    processor = build_processor(WORDS)
    model = build_model(build_config("demo", processor.tokenizer))
    model.load_state_dict(weights_of(options.origin))
    prompter = Prompter(processor.tokenizer)
    asked = samples(options.count, options.seed)
    for variant in [Variant("off", None), *TRIALS[options.trial]]:
        joint.TOKEN_PRICE = variant.token_price
        found = ask(model, (batch_of(*one, variant, prompter) for one in asked), variant)
        print(json.dumps({"trial": variant.title, "n": options.count, **found}), flush=True)


if __name__ == "__main__":
    main()
