"""What `transformers-apt practise` does once its options are read: the imports here take seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HFValidationError

from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.engine.patching import IncompatibleTransformersError, apply
from transformers_apt.training.agreement import as_table
from transformers_apt.training.pairs import FilePairs, Row, check_placeholders, hold_out, read_rows
from transformers_apt.training.practice import Plan, Practice, make_accelerator

EXPECTED = (OSError, ValueError, ModuleNotFoundError, HFValidationError, IncompatibleTransformersError)
"""Errors that a user can do something about."""


class Rows(NamedTuple):
    """Files with prompts: those to practise on, and those to judge by."""

    practice: list[Row]
    held_out: list[Row]


def rows_of(images: Path, prompts: Sequence[str], prompts_file: Path | None, held_out: int, seed: int) -> Rows:
    """The rows that the options name.

    Raises:
        ValueError: they name none, or one image only.
    """
    return Rows(*hold_out(read_rows(images, prompts, prompts_file), held_out, seed))


def run(model: str | None, dtype: str, rows: Rows, plan: Plan, out: Path) -> str | None:
    """Practise, judge and save; the table of what was gained, `None` but in the first process.

    Raises:
        GotWorseError: answers got worse, and nothing was saved. KeyboardInterrupt: it was asked to end.
    """
    apply()
    accelerator = make_accelerator()
    checkpoint, processor = load_checkpoint(model, str(accelerator.device), dtype)
    check_placeholders([*rows.practice, *rows.held_out], processor)
    exam = FilePairs(rows.held_out, plan.seed).once()
    say(accelerator, f"{len(rows.practice)} prompts to practise on; first, the answers to {len(exam)} to judge by")
    practice = Practice(accelerator, checkpoint, processor, FilePairs(rows.practice, plan.seed), exam, plan, out)
    practise(practice)
    say(accelerator, "judging what has been learned")
    after = practice.agreement()
    practice.save(after)
    say(accelerator, f"saved in {out}")
    return as_table(practice.before, after) if accelerator.is_main_process else None


def say(accelerator: Any, what: str) -> None:
    """One line on stderr, once: what follows may take a while."""
    if accelerator.is_main_process:
        print(what, file=sys.stderr, flush=True)


def practise(practice: Practice) -> None:
    """Until the plan is done, with a progress bar."""
    from tqdm import tqdm

    form = "{l_bar}{bar}| {elapsed} of this call{postfix}"
    quiet = not practice.accelerator.is_main_process
    with tqdm(total=100, mininterval=5, bar_format=form, disable=quiet, desc="practice") as bar:
        progress: Any = bar
        practice.run(progress)
