"""How far a student that reads mixed patches agrees with the teacher at full resolution, by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from transformers_apt.models.settings import RECOMMENDED
from transformers_apt.training.batches import full_resolution, view
from transformers_apt.training.pairs import Pair
from transformers_apt.training.teacher import FULL_RESOLUTION, Answer, answer, divergence, join

SETTINGS: Mapping[str, dict[str, Any]] = {
    "off": FULL_RESOLUTION,
    "recommended": dict(RECOMMENDED),
    "fit 0.45": {"patch_selection_method": "fit", "alpha": 0.45},
    "fit 0.3": {"patch_selection_method": "fit", "alpha": 0.3},
    "budget 0.3": {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"},
}
"""What is compared with full resolution. `off` is full resolution itself: what it shows is what practice did to it."""


@dataclass(frozen=True)
class Agreement:
    """Of a student with the teacher, over all pairs.

    Attributes:
        divergence: mean Kullback-Leibler divergence at a token of an answer, in nats.
        same: share of the answers that are the teacher's, token for token, under greedy generation.
        tokens: mean number of language tokens of a picture.
    """

    divergence: float
    same: float
    tokens: float


@dataclass(frozen=True)
class Exam:
    """Held-out pairs, with the teacher's answers.

    Attributes:
        pairs: the pairs.
        answers: one each.
    """

    pairs: Sequence[Pair]
    answers: Sequence[Answer]

    @classmethod
    def by(cls, model: Any, processor: Any, pairs: Sequence[Pair], max_new_tokens: int, batch: int) -> Exam:
        """The answers are those of this model at full resolution."""
        answers: list[Answer] = []
        for start in range(0, len(pairs), batch):
            inputs = full_resolution(processor, list(pairs[start : start + batch])).to(model.device)
            answers += answer(model, inputs, max_new_tokens)
        return cls(pairs, answers)

    def take(self, model: Any, processor: Any, batch: int) -> dict[str, Agreement]:
        """How far a model agrees, by the names of `SETTINGS`."""
        was_training = model.training
        model.eval()
        found = {name: self._under(settings, model, processor, batch) for name, settings in SETTINGS.items()}
        model.train(was_training)
        return found

    @torch.no_grad()
    def _under(self, settings: dict[str, Any], model: Any, processor: Any, batch: int) -> Agreement:
        divergences, same, tokens = [], [], []
        for start in range(0, len(self.pairs), batch):
            answers = self.answers[start : start + batch]
            views = [view(processor, pair, settings) for pair in self.pairs[start : start + batch]]
            tokens += [int((inputs["mm_token_type_ids"] == 1).sum()) for inputs in views]
            for logits, taught in zip(
                student_logits(model, processor, views, answers, model.device), answers, strict=True
            ):
                divergences.append(divergence(logits, taught))
                # the first wrong token would change a greedy answer
                same.append(bool((logits.argmax(-1).cpu() == taught.tokens).all()))
        mean = torch.cat(divergences).mean().clamp(min=0)  # rounding may end below
        return Agreement(float(mean), sum(same) / len(same), sum(tokens) / len(tokens))


def student_logits(
    model: Any, processor: Any, views: Sequence[Any], answers: Sequence[Answer], device: torch.device
) -> list[torch.Tensor]:
    """`(a, vocabulary)` of each view, at the tokens of its answer."""
    inputs = join(views, answers, processor.tokenizer.pad_token_id)
    longest = max(len(taught.tokens) for taught in answers)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    # the prompts end together, so the last places hold the answers; each token is named one place earlier
    logits = model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]
    return [row[longest - len(taught.tokens) :] for row, taught in zip(logits, answers, strict=True)]


def what_got_worse(before: Mapping[str, Agreement], after: Mapping[str, Agreement]) -> str | None:
    """A sentence that names it, `None` where nothing did: both measures are means over all settings but `off`."""
    names = [name for name in before if name != "off"]

    def mean(found: Mapping[str, Agreement], measure: str) -> float:
        return sum(getattr(found[name], measure) for name in names) / len(names)

    said = []
    if not mean(after, "divergence") <= mean(before, "divergence"):  # nor what is no number
        rose = (mean(found, "divergence") for found in (before, after))
        said.append("the divergence from full resolution rose from {:.6g} to {:.6g} nats a token".format(*rose))
    if mean(after, "same") < mean(before, "same"):
        fell = (100 * mean(found, "same") for found in (before, after))
        said.append("the share of answers as at full resolution fell from {:.1f} to {:.1f} %".format(*fell))
    return " and ".join(said) or None


def as_table(before: Mapping[str, Agreement], after: Mapping[str, Agreement]) -> str:
    """In Markdown, what changed under each setting: language tokens of a picture, answers as at full resolution, and
    the divergence from it at a token."""
    lines = [
        "| setting | tokens | same answers, % | divergence, nats |",  # a terminal has 80 columns
        "|---|---:|---:|---:|",
    ]
    for name, old in before.items():
        new = after[name]
        same = f"{100 * old.same:.1f} → {100 * new.same:.1f}"
        lines.append(f"| {name} | {new.tokens:.0f} | {same} | {old.divergence:.4f} → {new.divergence:.4f} |")
    return "\n".join(lines)


def as_json(found: Mapping[str, Agreement]) -> dict[str, dict[str, float]]:
    """For a file."""
    return {name: asdict(agreement) for name, agreement in found.items()}
