"""Settings drawn at random, so that a model practises on all that it may be given later, and not on one of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def draw_settings(rng: np.random.Generator) -> dict[str, Any]:
    """`images_kwargs` of one picture. Never `"off"`: the teacher reads that.

    In two of five, thresholds on what averaging loses (3 to 24 grey levels); in two of five, `budget` or `joint` with
    10 to 80 % of the patches; else `fit` within 20 to 80 % of the language tokens, seldom, because most of what that
    loses is resolution, which no practice brings back. Two of three leave cells out, most of them within the
    recommended 2 grey levels.
    """
    turn = rng.random()
    if turn < 0.4:
        found = draw_thresholds(rng)
    elif turn < 0.8:
        found = draw_budget(rng)
    else:
        found = {"patch_selection_method": "fit", "alpha": float(rng.uniform(0.2, 0.8))}
    return found | {"drop_tolerance": draw_tolerance(rng)}


def draw_thresholds(rng: np.random.Generator) -> dict[str, Any]:
    """`v1` with one threshold for both sizes."""
    squared = float(np.exp(rng.uniform(np.log(3), np.log(24)))) ** 2
    # the fourth power weighs strokes more: three times as much keeps about as many cells whole
    name, threshold = ("upsample_mse", squared) if rng.random() < 0.6 else ("upsample_l4", 3 * squared)
    return {"patch_selection_method": "v1", "importance_method": name, "thresholds": [threshold, threshold]}


def draw_budget(rng: np.random.Generator) -> dict[str, Any]:
    """`budget` or `joint` under any importance."""
    name = str(rng.choice(["budget", "joint"]))
    importance = str(rng.choice(["upsample_mse", "upsample_mse", "upsample_l4", "laplacian", "entropy"]))
    return {"patch_selection_method": name, "alpha": float(rng.uniform(0.1, 0.8)), "importance_method": importance}


def draw_tolerance(rng: np.random.Generator) -> float | str:
    """The recommended 2 grey levels four times in nine, up to 4 twice, else nothing is left out."""
    turn = rng.random()
    if turn < 1 / 3:
        return "off"
    return 2.0 if turn < 7 / 9 else float(rng.uniform(0, 4))
