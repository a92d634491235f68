"""Training batches of mixed-scale patches, each under a selection setting drawn at random: phase 2.

The tiling comes from the package itself, so that the model practises on what it will be given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from apt_code import PatchTokenizer
from apt_code.patch_packing import pack_patches
from benchmarks.quality.canvas import Scene
from benchmarks.quality.collate import PATCH, Batch, Mixed, Prompter, add_questions, collate
from benchmarks.quality.questions import Question
from transformers_apt.training.random_settings import draw_budget, draw_thresholds, draw_tolerance


def draw_selection(rng: np.random.Generator) -> dict[str, Any] | None:
    """A random setting, or None, two times in five, for upstream's uniform patches.

    A threshold on what averaging loses, from 3 to 24 grey levels; a budget, joint or not, from a tenth of the patches
    up under any importance; a threshold on the entropy, or a multiple of its mean. Two in three leave cells out.
    """
    turn = rng.random()
    if turn < 0.4:
        return None
    return _draw_tiling(rng, (turn - 0.4) / 0.6) | {"drop_tolerance": draw_tolerance(rng)}


def _draw_tiling(rng: np.random.Generator, turn: float) -> dict[str, Any]:
    if turn < 0.55:
        return draw_thresholds(rng)
    if turn < 0.88:
        return draw_budget(rng)
    if turn < 0.95:
        thresholds = [float(rng.uniform(2, 5)), float(rng.uniform(1, 4))]
        return {"patch_selection_method": "v1", "thresholds": thresholds}
    return {"patch_selection_method": "v2", "alpha": float(rng.uniform(0.3, 1.5))}


def collate_mixed(
    samples: list[tuple[Scene, list[Question]]],
    height: int,
    width: int,
    prompter: Prompter,
    selection: dict[str, Any] | None,
    pack: Callable[..., torch.Tensor] = pack_patches,
) -> Batch:
    """One batch of pictures resized to `height` by `width`, tiled as `selection` says; `pack` makes the patches."""
    if selection is None:
        return collate(samples, height, width, prompter)
    tokenizer = PatchTokenizer(num_scales=3, base_patch_size=PATCH, **selection)
    rows, layouts = [], []
    for scene, _ in samples:
        image = scene.image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]  # (1, c, H, W)
        layouts += tokenizer.select_layouts(pixels)
        rows.append(pack(pixels, layouts[-1:], PATCH).flatten(1))
    empty = torch.empty(0)
    batch = Batch(torch.nn.utils.rnn.pad_sequence(rows, True), (height // PATCH, width // PATCH), empty, empty, empty)
    pad = torch.nn.utils.rnn.pad_sequence
    sources = [layout.merger_index.view(-1, 4) for layout in layouts]
    batch.mixed = Mixed(
        centres=pad([layout.centres for layout in layouts], True),
        sizes=pad([layout.sizes for layout in layouts], True, 1),
        valid=pad([torch.ones(len(found), dtype=torch.bool) for found in rows], True),
        sources=pad(sources, True),
        tokens=pad([torch.ones(len(found), dtype=torch.bool) for found in sources], True),
    )
    add_questions(
        batch, [asked for _, asked in samples], prompter, [layout.language_cells.numpy() for layout in layouts]
    )
    return batch
