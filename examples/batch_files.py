"""The files of `batch_ray.py`: which rows there are to do, and the folder of those that are done."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.json
import pyarrow.parquet

from transformers_apt.models.image_files import image_files

JOB = "_job.json"
"""What made the answers of a folder. Readers of Parquet pass over names that begin like this."""

Row = dict[str, Any]

# ---------------------------------------------------------------- what there is to do


def images_in(folder: Path) -> list[str]:
    """Every image file of a folder and the folders in it, relative to it.

    Raises:
        ValueError: there is none.
    """
    return sorted(path.relative_to(folder).as_posix() for path in image_files(folder, folder.rglob("*")))


def rows_of(prompts: Path, default: str | None) -> list[Row]:
    """The rows of a Parquet or JSONL file: `image`, and `prompt`, for which `default` stands in.

    Raises:
        OSError, ValueError: it cannot be read, or a row lacks one of them.
    """
    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".jsonl": pyarrow.json.read_json,
        ".ndjson": pyarrow.json.read_json,
    }
    if prompts.suffix not in readers:
        raise ValueError(f"{prompts} ends in {prompts.suffix!r}; expected one of {', '.join(readers)}")
    found = []
    try:
        given = readers[prompts.suffix](prompts).to_pylist()
    except ValueError as error:
        raise ValueError(f"{prompts} cannot be read: {error}") from error
    for number, row in enumerate(given, 1):
        one = {"image": row.get("image"), "prompt": row.get("prompt") or default}
        for name, value in one.items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"{prompts}, row {number}: {name}={value!r}; expected a text that is not empty")
        found.append(one)
    return found


def missing(rows: Iterable[Row], done: Iterable[Row]) -> list[Row]:
    """The rows that nothing was done about, each once."""
    there = {(row["image"], row["prompt"]) for row in done}
    wanted = dict.fromkeys((row["image"], row["prompt"]) for row in rows)
    return [{"image": image, "prompt": prompt} for image, prompt in wanted if (image, prompt) not in there]


# ---------------------------------------------------------------- the output folder


def write(table: pyarrow.Table, path: Path) -> None:
    """A file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(table, partial)
    os.replace(partial, path)


def add(tables: Sequence[pyarrow.Table], output: Path) -> None:
    """One more file in the folder, under a name of its own."""
    write(pyarrow.concat_tables(tables), output / f"part-{uuid.uuid4().hex}.parquet")


def open_output(output: Path, makes_answers: Row) -> None:
    """Make the folder, or see that it holds answers that were made in this very way.

    Raises:
        OSError, ValueError: it holds something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    note, ours = output / JOB, json.dumps(makes_answers, indent=2)
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        differing = [name for name, value in json.loads(ours).items() if before.get(name) != value]
        for name in differing:
            raise ValueError(
                f"{output} was begun with {name}={before.get(name)!r}, not {makes_answers[name]!r}; take another "
                "folder, or what it was begun with"
            )
    elif any(output.iterdir()):
        raise ValueError(f"{output} holds other files and no {JOB}; expected a new folder, or one of an earlier run")
    else:
        note.write_text(ours, encoding="utf-8")


def read_output(output: Path, *, forget_errors: bool = False) -> list[Row]:
    """`image` and `prompt` of what earlier runs did. Errors can be taken out of the files, to be tried again."""
    done: list[Row] = []
    for path in sorted(output.glob("part-*.parquet")):
        table = pyarrow.parquet.read_table(path)
        kept = table.filter(table["error"].is_null()) if forget_errors else table
        if len(kept) < len(table):
            write(kept, path)
        done += kept.select(["image", "prompt"]).to_pylist()
    return done
