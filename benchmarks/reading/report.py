"""The tables of a run."""

from __future__ import annotations

from typing import Any

TITLES = ("rule", "patches %", "tokens %", "compute 7B %", "change", "ahead, equal patches", "ahead, equal tokens")
TITLES += ("ahead, equal compute",)


def _points(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_interval"]
    return f"{row[key]:+.1f} ({low:+.1f} to {high:+.1f})"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, one row per rule."""
    lines = ["| " + " | ".join(TITLES) + " |", "|---|" + "---:|" * (len(TITLES) - 1)]
    for row in rows:
        cells = [f"{row[f'{cost}_percent']:.0f}" for cost in ("patches", "tokens", "compute")]
        cells += [
            _points(row, key) for key in ("change", *(f"ahead_at_equal_{c}" for c in ("patches", "tokens", "compute")))
        ]
        lines.append(f"| {row['rule']} | " + " | ".join(cells) + " |")
    return lines


def table_by_kind(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """`{kind: {rule: row}}` -> lines of Markdown: language tokens, change, points ahead at equal tokens."""
    kinds = list(found)
    lines = ["| rule | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    for rule in found[kinds[0]]:
        rows = [found[kind][rule] for kind in kinds]
        cells = [
            f"{row['tokens_percent']:.0f} %, {row['change']:+.1f}, {row['ahead_at_equal_tokens']:+.1f}" for row in rows
        ]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return lines


def markdown(results: dict[str, Any]) -> str:
    """Everything that a run found."""
    about = results["about"]
    lines = [
        f"{about['pictures']} pictures, half of them held out; readers: {', '.join(about['readers'].values())}. "
        f"{about['hardware']['cpu']}, {about['hardware']['cores']} cores.",
        "",
        "Chosen on the other half, small size: "
        + "; ".join(f"to {aim}: {rule}" for aim, rule in results["chosen"].items())
        + ".",
    ]
    for size, found in results["held_out"].items():
        full = ", ".join(f"{reader} {value:.1f} %" for reader, value in found["full"]["right"].items())
        lines += ["", f"### Held-out half, {size} size (in full: {full})", "", *table(found["rows"])]
        lines += ["", "Per kind: language tokens, change in points, points ahead of a downscale of equal tokens.", ""]
        lines += table_by_kind(found["kinds"])
    lines += ["", "### The other half, small size: what was chosen from", "", *table(results["other_half"])]
    return "\n".join(lines) + "\n"
