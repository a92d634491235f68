"""Tables and plots of an evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.quality.candidates import CANDIDATES
from transformers_apt.models.flops import QWEN2_VL, prefill_flops, tower_flops

_TEXT_TOKENS = 32
_COLUMNS = (
    "all",
    "read",
    "read <14 px",
    "read 14-19 px",
    "read 20-48 px",
    "colour",
    "count",
    "where",
)


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % confidence interval of a share, after Wilson (1927); it stays inside [0, 1] and behaves at its ends."""
    if count < 1 or not 0 <= right <= count:
        raise ValueError(f"{right} right of {count}, expected 0 <= right <= count and count >= 1")
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(hits: list[bool]) -> dict[str, float]:
    """Count, right answers, accuracy and its interval."""
    low, high = wilson(sum(hits), len(hits))
    return {"n": len(hits), "right": sum(hits), "accuracy": sum(hits) / len(hits), "low": low, "high": high}


def paired(ours: list[bool], theirs: list[bool]) -> dict[str, float]:
    """Difference in accuracy on the same questions, with its 95 % interval (McNemar's variance).

    Narrower than two separate intervals, because most questions are answered alike by both.
    """
    count = len(ours)
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    difference = (won - lost) / count
    half = 1.959964 * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / count)) / count
    return {"difference": difference, "low": difference - half, "high": difference + half}


def points(group: dict[str, float]) -> str:
    """A difference and its interval, in points."""
    return f"{100 * group['difference']:+.1f} ({100 * group['low']:+.1f} to {100 * group['high']:+.1f})"


def _cell(group: dict[str, float] | None) -> str:
    if group is None:
        return ""
    return f"{100 * group['accuracy']:.1f} ({100 * group['low']:.0f}–{100 * group['high']:.0f})"


def add_compute(rows: list[dict[str, Any]], answers: dict[str, dict[str, list[Any]]]) -> None:
    """Gives each row its `compute`: operations up to the first answer token, as a share of upstream's.

    That is vision tower and language prefill of the published 2B and 7B shapes, for the row's patches and tokens of
    each picture and a prompt of 32 tokens of text, by `transformers_apt.models.flops`; without an `off` row, nothing.
    """
    if "off" not in answers:
        return
    for size, shape in QWEN2_VL.items():
        totals = {
            name: sum(
                tower_flops(patches, tokens, shape) + prefill_flops(tokens + _TEXT_TOKENS, shape)
                for patches, tokens in zip(kept["patches"], kept["tokens"], strict=True)
            )
            for name, kept in answers.items()
        }
        for row in rows:
            row.setdefault("compute", {})[size] = totals[row["name"]] / totals["off"]


def markdown(results: dict[str, Any]) -> str:
    """One row per setting, accuracy in per cent with the 95 % interval in brackets."""
    rows = results["settings"]
    groups = {name for row in rows for name in row["groups"]}
    known = [name for name in _COLUMNS if name in groups]
    columns = known if len(known) > 1 else ["all", *sorted(groups - {"all"})]
    counts = {name: next(row["groups"][name]["n"] for row in rows if name in row["groups"]) for name in columns}
    sizes = list(rows[0].get("compute", {})) if rows else []
    titles = ["setting", "vision patches", "language tokens", *[f"compute, {size.upper()}" for size in sizes]]
    titles += [*[f"{name} (n={counts[name]})" for name in columns]]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows:
        cells = [_cell(row["groups"].get(name)) for name in columns]
        cells = [*(f"{row['compute'][size]:.0%}" for size in sizes), *cells]
        lines.append(f"| {row['name']} | {row['patches']:.1f} | {row['tokens']:.1f} | " + " | ".join(cells) + " |")
    meta = results["meta"]
    head = [
        f"Exact match in per cent, 95 % interval in brackets. {meta['items']} questions, model `{meta['model']}`, "
        f"{meta['device']}, {meta['threads']} thread(s), torch {meta['torch']}, transformers {meta['transformers']}.",
        "",
    ]
    pairs = results.get("paired", [])
    if pairs:
        shown = [name for name in ("all", "read", "read 14+ px", "count") if name in pairs[0]["groups"]]
        lines += ["", "Points ahead of downscaling on the same questions, 95 % interval in brackets.", ""]
        lines += ["| setting | against | equal | " + " | ".join(shown) + " |", "|---|---|---|" + "---:|" * len(shown)]
        for pair in pairs:
            cells = [points(pair["groups"][name]) for name in shown]
            lines.append(f"| {pair['setting']} | {pair['against']} | {pair['equal']} | " + " | ".join(cells) + " |")
    return "\n".join([*head, *lines]) + "\n"


def _abscissa(row: dict[str, Any], key: str) -> float:
    return 100 * row["compute"][key.removeprefix("compute_")] if key.startswith("compute") else row[key]


def plot(results: dict[str, Any], folder: Path, groups: tuple[str, ...] = ("all", "read 14+ px")) -> list[Path]:
    """Accuracy against vision patches, language tokens and, where it is known, compute; one file each.

    Maps on trial stay in the table: their curves lie on top of one another.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = results["settings"]
    titles = [name for name in groups if any(name in row["groups"] for row in rows)]
    written = []
    against = {"patches": "vision patches per picture (mean)", "tokens": "language tokens per picture (mean)"}
    for size in rows[0].get("compute", {}):
        against[f"compute_{size}"] = f"operations to the first token, {size.upper()} shape, % of upstream's"
    for key, label in against.items():
        figure, axes = plt.subplots(1, len(titles), figsize=(6.4 * len(titles), 4.6), squeeze=False)
        for axis, name in zip(axes[0], titles, strict=True):
            series: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                title = row["series"]
                matched = title.endswith(("equal patches", "equal tokens"))
                if matched and key.startswith("compute"):
                    title, matched = "downscale", False
                shown = title.removeprefix("budget ") not in CANDIDATES or title == "budget random"
                if shown and name in row["groups"] and (not matched or title.endswith(f"equal {key}")):
                    series.setdefault(title, []).append(row)
            for title, found in series.items():
                found = sorted(found, key=lambda row: _abscissa(row, key))
                x, y = [_abscissa(row, key) for row in found], [100 * row["groups"][name]["accuracy"] for row in found]
                low = [value - 100 * row["groups"][name]["low"] for value, row in zip(y, found, strict=True)]
                high = [100 * row["groups"][name]["high"] - value for value, row in zip(y, found, strict=True)]
                style = "--" if title.startswith(("downscale", "budget random")) else "-"
                axis.errorbar(x, y, yerr=[low, high], fmt=style, marker="o", ms=4, capsize=2, lw=1.2, label=title)
            axis.set(xlabel=label, ylabel="exact match, %", title=name, ylim=(0, 101))
            axis.grid(alpha=0.3)
        axes[0][-1].legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        written.append(folder / f"accuracy_per_{key}.png")
        figure.savefig(written[-1], dpi=130)
        plt.close(figure)
    return written
