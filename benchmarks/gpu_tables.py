"""The tables of docs/benchmarks.md out of what `benchmarks/gpu.sh` left: `python -m benchmarks.gpu_tables FOLDER`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

COLUMNS = {
    "generate": (
        "model", "image", "kind", "method", "patches", "tokens %", "preprocess", "preprocess there", "tower",
        "first token", "total ms", "speed-up", "speed-up there", "ceiling (FLOPs)", "reached", "peak GiB",
    ),
    "vision_tower": ("family", "image", "method", "patches", "ms", "speed-up", "ceiling (FLOPs)", "reached"),
    "gpu_preprocessing": (
        "image", "kind", "method", "patches", "ms", "ratio", "ms × 4", "ratio × 4", "waits", "a further image",
    ),
}  # fmt: skip
"""By benchmark, what its table shows; everything else is in the JSON."""


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Markdown, the numbers to the right."""
    lines = [columns, ["---" if isinstance(rows[0].get(name), str) else "---:" for name in columns]]
    lines += [[_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return "–" if value is None else f"{value}"


def main(
    folder: Annotated[Path, typer.Argument(help="What gpu.sh wrote.")],
) -> None:
    """Print one table per benchmark, of all its runs below the folder."""
    for name, columns in COLUMNS.items():
        rows: list[dict[str, Any]] = []
        about: dict[str, Any] = {}
        for path in sorted(folder.rglob(f"{name}.json")):
            about = json.loads(path.read_text())
            for row in about["rows"]:
                family = row.get("family", about.get("family"))
                rows.append({**row, "family": family, "model": f"{family} {row.get('model')}"})
        if rows:
            hardware = about["hardware"]
            print(f"\n**{name}**, {hardware['gpu'] or hardware['cpu']}, torch {hardware['torch']}, ", end="")
            print(f"transformers {hardware['transformers']}, medians of {about['repeats']}:\n")
            print(table(rows, columns))


if __name__ == "__main__":
    typer.run(main)
