"""Two models' evaluations side by side: `python -m benchmarks.quality.compare BEFORE AFTER`.

The folders are `--out` of `benchmarks.quality.evaluate`, of the same drawn questions. Printed are the accuracies under
each setting, what the second model gained on the same questions, and how far both are ahead of downscaled pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.quality.evaluate import judge, members
from benchmarks.quality.items import fingerprint, generated
from benchmarks.quality.report import paired, points

_GROUPS = ("all", "read", "read 14+ px", "colour", "count", "where")


def _load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((folder / "results.json").read_text()), json.loads((folder / "answers.json").read_text())


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def compare(before: Path, after: Path) -> str:
    """The tables, in Markdown.

    Raises:
        ValueError: the two were asked different questions, or questions that are not the drawn ones.
    """
    (old, old_answers), (new, new_answers) = _load(before), _load(after)
    items = generated(old["meta"]["items"], int(old["meta"]["source"].split()[-1]))
    drawn = fingerprint(items)
    if not old["meta"]["data"] == new["meta"]["data"] == drawn:
        raise ValueError(
            f"the questions are {old['meta']['data']} and {new['meta']['data']}, expected the drawn ones, {drawn}: "
            "evaluate both with the same --count and --seed, and the versions that constraints.txt pins"
        )
    rows = {row["name"]: row for row in new["settings"]}
    both = [(row, rows[row["name"]]) for row in old["settings"] if row["name"] in rows]
    table, gained = [], []
    for first, second in both:
        name = first["name"]
        sizes = [f"{first[key]:.0f}" for key in ("patches", "tokens")]
        table.append([name, *sizes, *(f"{_percent(first, group)} → {_percent(second, group)}" for group in _GROUPS)])
        right = [judge(items, answers[name]["answers"]) for answers in (new_answers, old_answers)]
        differences = {
            group: paired(*([found[index] for index in places] for found in right))
            for group, places in members(items).items()
        }
        gained.append([name, *(points(differences[group]) for group in _GROUPS)])
    parts = [_table(["setting", "patches", "tokens", *_GROUPS], table), _table(["gained", *_GROUPS], gained)]
    for title, results in (("before", old), ("after", new)):
        ahead = [
            [pair["setting"], *(points(pair["groups"][group]) for group in _GROUPS)]
            for pair in results["paired"]
            if pair["equal"] == "tokens"
        ]
        parts.append(_table([f"ahead at equal tokens, {title}", *_GROUPS], ahead))
    return "\n".join(parts)


def _percent(row: dict[str, Any], group: str) -> str:
    return f"{100 * row['groups'][group]['accuracy']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    print(compare(options.before, options.after))


if __name__ == "__main__":
    main()
