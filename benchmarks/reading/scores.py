"""From readings to figures: means over pictures, intervals by resampling, and what a downscale of equal cost reads.

Axis legend: `n` pictures of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.reading.candidates import LADDER, OFF, Rule, by_name
from transformers_apt.models.flops import QWEN2_VL, prefill_flops, tower_flops
from transformers_apt.models.settings import FIT, METHOD

Record = dict[str, Any]
"""One rule on one picture: `kind`, `index`, `held_out`, `size`, `rule`, `patches`, `tokens` and `right` by reader."""

TEXT_TOKENS = 32
"""Of the question that a picture comes with, where compute is counted."""
SHAPE = "7b"
RESAMPLES = 10_000


def compute_of(record: Record) -> float:
    """Operations of Qwen2-VL-7B up to the first letter of an answer."""
    shape = QWEN2_VL[SHAPE]
    patches, tokens = record["patches"], record["tokens"]
    return tower_flops(patches, tokens, shape) + prefill_flops(tokens + TEXT_TOKENS, shape)


COSTS: dict[str, Callable[[Record], float]] = {
    "patches": lambda record: record["patches"],
    "tokens": lambda record: record["tokens"],
    "compute": compute_of,
}


def score(record: Record) -> float:
    """Mean character accuracy of the readers."""
    return float(np.mean(list(record["right"].values())))


def downscale_at(rungs: Sequence[Record], cost: Callable[[Record], float], price: float) -> float:
    """What a uniform downscale of one picture reads at a price: on the straight line between the rungs beside it.

    Below the lowest rung that one's score counts, which favours the downscale.
    """
    points = sorted((cost(rung), score(rung)) for rung in rungs)
    return float(np.interp(price, *zip(*points, strict=True)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: the pictures drawn anew, with replacement, `RESAMPLES` times."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Pictures:
    """All records of some pictures of one size.

    Args:
        records: `{rule: [one record per picture, in one order]}`.
    """

    records: dict[str, list[Record]]

    @classmethod
    def of(cls, records: Sequence[Record], size: str, held_out: bool, kind: str | None = None) -> Pictures:
        found: dict[str, list[Record]] = {}
        for record in sorted(records, key=lambda record: (record["kind"], record["index"])):
            if (record["size"], record["held_out"]) == (size, held_out) and kind in (None, record["kind"]):
                found.setdefault(record["rule"], []).append(record)
        return cls(found)

    def share(self, rule: str, cost: str) -> float:
        """What the rule costs of what the picture costs in full, in per cent, mean over pictures."""
        pairs = zip(self.records[rule], self.records[OFF.name], strict=True)
        return 100 * float(np.mean([COSTS[cost](record) / COSTS[cost](full) for record, full in pairs]))

    def changes(self, rule: str) -> list[float]:
        """Points of accuracy more, or less, than in full, per picture."""
        pairs = zip(self.records[rule], self.records[OFF.name], strict=True)
        return [100 * (score(record) - score(full)) for record, full in pairs]

    def leads(self, rule: str, cost: str) -> list[float]:
        """Points ahead of a uniform downscale of equal cost, per picture."""
        rungs = zip(*(self.records[rung.name] for rung in (OFF, *LADDER)), strict=True)
        return [
            100 * (score(record) - downscale_at(steps, COSTS[cost], COSTS[cost](record)))
            for record, steps in zip(self.records[rule], rungs, strict=True)
        ]

    def row(self, rule: str) -> Record:
        """One line of a table."""
        changes = self.changes(rule)
        low, high = interval(changes)
        found: Record = {"rule": rule, "change": float(np.mean(changes)), "change_interval": [low, high]}
        for cost in COSTS:
            leads = self.leads(rule, cost)
            found[f"{cost}_percent"] = self.share(rule, cost)
            found[f"ahead_at_equal_{cost}"] = float(np.mean(leads))
            found[f"ahead_at_equal_{cost}_interval"] = list(interval(leads))
        readers = self.records[rule][0]["right"]
        found["right"] = {
            reader: 100 * float(np.mean([record["right"][reader] for record in self.records[rule]]))
            for reader in readers
        }
        return found


MOST_LOST = 0.2
"""Points that a setting may lose to be called one that loses nothing."""
BUDGET = 45.0
"""Per cent of the language tokens that the other setting may take."""


def choose(pictures: Pictures) -> dict[str, Rule]:
    """The settings that are best on these pictures: flat cells dropped, in one case predictable ones too.

    "lose nothing": the fewest language tokens with at most `MOST_LOST` points lost. "45 % of the tokens": of those
    that downscale first, the one that reads most within the budget.
    """
    family = [rule for name, rule in by_name().items() if rule.drop and name in pictures.records]
    flat = [rule for rule in family if rule.predictable is None and not _is_fit(rule)]
    more = [rule for rule in family if rule.predictable is not None and not _is_fit(rule)]
    first = [rule for rule in flat if rule.area < 1 and pictures.share(rule.name, "tokens") <= BUDGET]

    def fewest(rules: Sequence[Rule]) -> Rule:
        lossless = [r for r in rules if r.area == 1 and np.mean(pictures.changes(r.name)) >= -MOST_LOST]
        return min(lossless, key=lambda rule: pictures.share(rule.name, "tokens"))

    chosen = {"lose nothing": fewest(flat)}
    if more:
        chosen["lose nothing, predictable cells left out too"] = fewest(more)
    return chosen | {"45 % of the tokens": max(first, key=lambda rule: float(np.mean(pictures.changes(rule.name))))}


def _is_fit(rule: Rule) -> bool:
    """Whether the rule chooses the resolution itself."""
    return rule.settings is not None and rule.settings.get(METHOD) == FIT
