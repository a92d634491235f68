"""Whether a folder's practice is the one that a call means to go on with.

Its answers, and what was judged before, are kept there: with another model, or judged by other pairs, they would be
compared with what they have nothing to do with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transformers_apt.training.pairs import Pair


def identity_of(model: Any, held_out: Sequence[Pair]) -> dict[str, Any]:
    """Of a model before it practises, and of the pairs that it is judged by."""
    return {"dtype": str(model.dtype), "weights": digest_of_weights(model), "held out": digest_of_pairs(held_out)}


def digest_of_weights(model: Any) -> str:
    """Tells a model from others by the first of each tensor, wherever its files lie; a branch aside."""
    weights = (weight for name, weight in model.named_parameters() if ".branch." not in name)
    some = [weight.detach().flatten()[:8].float() for weight in weights]
    return hashlib.sha256(torch.cat(some).cpu().numpy().tobytes()).hexdigest()[:16]


def digest_of_pairs(pairs: Sequence[Pair]) -> str:
    """Tells pictures with prompts from others."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(pair.image.tobytes() + b"\0" + pair.prompt.encode() + b"\0")
    return found.hexdigest()[:16]


def refuse_another(now: Mapping[str, Any], kept: Mapping[str, Any], folder: Path) -> None:
    """Compare two identities.

    Raises:
        ValueError: they differ.
    """
    changed = {name: value for name, value in now.items() if kept.get(name) != value}
    if changed:
        was = {name: kept.get(name) for name in changed}
        raise ValueError(
            f"{folder} holds a practice with {was}, not {changed}: go on with the same model, images, prompts and "
            "options, or choose another folder"
        )
