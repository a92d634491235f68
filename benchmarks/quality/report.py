"""Tables and plots of an evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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


def _cell(group: dict[str, float] | None) -> str:
    if group is None:
        return ""
    return f"{100 * group['accuracy']:.1f} ({100 * group['low']:.0f}–{100 * group['high']:.0f})"


def markdown(results: dict[str, Any]) -> str:
    """One row per setting, accuracy in per cent with the 95 % interval in brackets."""
    rows = results["settings"]
    groups = {name for row in rows for name in row["groups"]}
    known = [name for name in _COLUMNS if name in groups]
    columns = known if len(known) > 1 else ["all", *sorted(groups - {"all"})]
    counts = {name: next(row["groups"][name]["n"] for row in rows if name in row["groups"]) for name in columns}
    titles = ["setting", "vision patches", "language tokens", *[f"{name} (n={counts[name]})" for name in columns]]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows:
        cells = [_cell(row["groups"].get(name)) for name in columns]
        lines.append(f"| {row['name']} | {row['patches']:.1f} | {row['tokens']:.1f} | " + " | ".join(cells) + " |")
    meta = results["meta"]
    head = [
        f"Exact match in per cent, 95 % interval in brackets. {meta['items']} questions, model `{meta['model']}`, "
        f"{meta['device']}, {meta['threads']} thread(s), torch {meta['torch']}, transformers {meta['transformers']}.",
        "",
    ]
    return "\n".join([*head, *lines]) + "\n"


def plot(results: dict[str, Any], folder: Path, groups: tuple[str, ...] = ("all", "read 14+ px")) -> list[Path]:
    """Accuracy against vision patches and against language tokens, one file each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = results["settings"]
    shown = [name for name in groups if any(name in row["groups"] for row in rows)]
    written = []
    for key, label in (("patches", "vision patches"), ("tokens", "language tokens")):
        figure, axes = plt.subplots(1, len(shown), figsize=(6.4 * len(shown), 4.6), squeeze=False)
        for axis, name in zip(axes[0], shown, strict=True):
            series: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                matched = row["series"].endswith(("equal patches", "equal tokens"))
                if name in row["groups"] and (not matched or row["series"].endswith(f"equal {key}")):
                    series.setdefault(row["series"], []).append(row)
            for title, found in series.items():
                found = sorted(found, key=lambda row: row[key])
                x, y = [row[key] for row in found], [100 * row["groups"][name]["accuracy"] for row in found]
                low = [value - 100 * row["groups"][name]["low"] for value, row in zip(y, found, strict=True)]
                high = [100 * row["groups"][name]["high"] - value for value, row in zip(y, found, strict=True)]
                style = "--" if title.startswith(("downscale", "budget random")) else "-"
                axis.errorbar(x, y, yerr=[low, high], fmt=style, marker="o", ms=4, capsize=2, lw=1.2, label=title)
            axis.set(xlabel=f"{label} per picture (mean)", ylabel="exact match, %", title=name, ylim=(0, 101))
            axis.grid(alpha=0.3)
        axes[0][-1].legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        written.append(folder / f"accuracy_per_{key}.png")
        figure.savefig(written[-1], dpi=130)
        plt.close(figure)
    return written
