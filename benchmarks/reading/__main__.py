"""`python -m benchmarks.reading`: draw, leave out, read, compare.

It measures what is left in the pixels, which is what a model could at best see, and not what a model makes of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from tqdm import tqdm

from benchmarks.measuring import hardware
from benchmarks.reading import readers
from benchmarks.reading.candidates import GRID, LADDER, OFF, RULES, Rule, by_name
from benchmarks.reading.pictures import KINDS, picture, smaller
from benchmarks.reading.report import markdown
from benchmarks.reading.scores import Pictures, Record, choose
from benchmarks.reading.sheet import Picture

SIZES = ("native", "small")
MOST_LINES = 10
"""Read of each picture, spread evenly over it."""

Task = tuple[str, int, str, tuple[str, ...], tuple[str, ...], str]


def measure(task: Task) -> list[Record]:
    """One picture at one size under some rules."""
    kind, index, size, rules, present, cache_file = task
    torch.set_num_threads(1)
    drawn = picture(kind, index)
    if size == "small":
        drawn = smaller(drawn)
    chosen = np.unique(np.linspace(0, len(drawn.lines) - 1, MOST_LINES).round().astype(int))
    lines = [drawn.lines[i] for i in chosen]
    seen = {name: by_name()[name].see(drawn.image) for name in rules}
    cut = [
        readers.cut_out(
            left.image, line.box, (left.image.width / drawn.image.width, left.image.height / drawn.image.height)
        )
        for left in seen.values()
        for line in lines
    ]
    weights = [len(line.text) for line in lines]
    scores: dict[str, np.ndarray] = {}
    for reader in present:
        found = readers.read(reader, cut, Path(cache_file))
        marks = [readers.right(line.text, text) for line, text in zip(lines * len(seen), found, strict=True)]
        # (rules · lines,) -> (rules,)
        scores[reader] = np.average(np.reshape(marks, (len(seen), len(lines))), axis=1, weights=weights)
    return [
        {
            "kind": kind,
            "index": index,
            "held_out": drawn.held_out,
            "size": size,
            "rule": name,
            "patches": left.patches,
            "tokens": left.tokens,
            "right": {reader: float(scores[reader][i]) for reader in present},
        }
        for i, (name, left) in enumerate(seen.items())
    ]


def run(
    pictures: Iterable[Picture],
    rules: dict[str, tuple[Rule, ...]],
    present: tuple[str, ...],
    output: Path,
    workers: int,
) -> list[Record]:
    """All records, for `{size: rules}`; small pictures last, since they are quick."""
    tasks: list[Task] = [
        (
            one.kind,
            one.index,
            size,
            tuple(dict.fromkeys(rule.name for rule in rules[size])),
            present,
            str(output / "readings.sqlite"),
        )
        for one in pictures
        for size in SIZES
    ]
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        measured = pool.map(measure, tasks) if pool else map(measure, tasks)
        found = list(tqdm(measured, total=len(tasks), desc="pictures", smoothing=0))
    return [record for records in found for record in records]


def compare(records: list[Record], rules: tuple[Rule, ...]) -> dict[str, Any]:
    """The held-out half at both sizes, in all and per kind."""
    found: dict[str, Any] = {}
    for size in SIZES:
        pictures = Pictures.of(records, size, held_out=True)
        kinds = sorted({record["kind"] for record in records}, key=list(KINDS).index)
        found[size] = {
            "full": pictures.row(OFF.name),
            "rows": [pictures.row(rule.name) for rule in rules],
            "kinds": {
                kind: {rule.name: Pictures.of(records, size, True, kind).row(rule.name) for rule in rules}
                for kind in kinds
            },
        }
    return found


def main(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for JSON, Markdown and what was read.")
    ] = Path("runs/reading"),
    pictures: Annotated[int, typer.Option(help="Pictures of each kind; a multiple of 4.")] = 8,
    kinds: Annotated[list[str] | None, typer.Option(help="Only these kinds of pictures.", show_default="all")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
    show: Annotated[bool, typer.Option(help="Also write the pictures, to be looked at.")] = False,
) -> None:
    """Say how much two pretrained readers still read of rendered pages, slides and signs under each setting."""
    console, start = Console(), time.perf_counter()
    unknown = set(kinds or ()) - set(KINDS)
    if pictures < 4 or pictures % 4 or unknown:
        raise typer.BadParameter(
            f"--pictures {pictures} --kinds {sorted(unknown)}: expected a multiple of 4, and of {list(KINDS)}"
        )
    present = tuple(reader for reader in readers.READERS if readers.is_there(reader))
    for reader in readers.READERS:
        if reader not in present:
            console.print(f"{reader} is left out: {readers.INSTALL[reader]}.", style="yellow")
    if not present:
        raise typer.Exit(1)
    output.mkdir(parents=True, exist_ok=True)
    drawn = [picture(kind, index) for kind in kinds or KINDS for index in range(pictures)]
    if show:
        for one in drawn:
            one.image.save(output / f"{one.name}.png")
            smaller(one).image.save(output / f"{one.name} small.png")
    every = (OFF, *LADDER, *RULES)
    other_half = [one for one in drawn if not one.held_out]
    records = run(other_half, {"native": every, "small": (*every, *GRID)}, present, output, workers)
    chosen = choose(Pictures.of(records, "small", held_out=False))
    reported = tuple(dict.fromkeys((*RULES, *chosen.values())))
    held_out = [one for one in drawn if one.held_out]
    rules = (OFF, *LADDER, *reported)
    records += run(held_out, dict.fromkeys(SIZES, rules), present, output, workers)
    other = Pictures.of(records, "small", held_out=False)
    results = {
        "about": {
            "pictures": len(drawn),
            "readers": {reader: readers.release(reader) for reader in present},
            "hardware": hardware(),
            "seconds": round(time.perf_counter() - start),
        },
        "chosen": {aim: rule.name for aim, rule in chosen.items()},
        "held_out": compare(records, reported),
        "other_half": [other.row(rule.name) for rule in (*RULES, *GRID)],
        "records": records,
    }
    text = markdown(results)
    (output / "reading.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (output / "reading.md").write_text(text, encoding="utf-8")
    console.print(text, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written: {output}/reading.json, .md; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
