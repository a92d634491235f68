"""What every sub-command says in the same way: errors in one line, on any terminal."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from transformers_apt.models.families import NAMES, no_such_checkpoint, no_such_family, series_of
from transformers_apt.visualizer.names import readable

BAD_INPUT = 2
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
CHECKPOINT = f"Folder or hub id of a checkpoint ({', '.join(dict.fromkeys(map(series_of, NAMES)))})"
PLAIN = {"×": "x", "…": "...", "✓": "(right)", "✗": "(wrong)", "²": "^2", "–": "-", "’": "'", "→": "->"}
"""For a terminal that cannot show these."""


def print_anywhere() -> None:
    """Let everything be printed, whatever encoding the terminal, or the file behind `>`, is said to have."""
    codecs.register_error("transformers_apt", _plainly)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a notebook's has none, and takes everything
            reconfigure(errors="transformers_apt")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(PLAIN.get(one) or readable(one) for one in error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode(), error.end


class Commands(TyperGroup):
    """The command itself: its sub-commands print what they like."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class."""
        print_anywhere()
        return super().main(*args, **kwargs)


def fail(message: object) -> typer.Exit:
    """One line on stderr, and the exit code for bad input."""
    complain("[red]error:[/red]", message)
    return typer.Exit(BAD_INPUT)


def complain(what: str, message: object) -> None:
    """One line on stderr, whatever is in the message."""
    line = escape(readable(" ".join(str(message).split())))
    Console(stderr=True, emoji=False).print(f"{what} {line}", highlight=False, soft_wrap=True)


def check_model(model: str | None) -> None:
    """Fail where a path to a checkpoint leads nowhere, before anything slow is imported."""
    problem = model and no_such_checkpoint(model)
    if problem:
        raise fail(problem)


def check_choice(option: str, value: str | None, choices: Sequence[str]) -> None:
    """Fail at a word that is none of the choices, before anything slow is imported."""
    if value is not None and value not in choices:
        raise fail(f"{option} {value}: expected one of {', '.join(choices)}")


def check_family(family: str | None, model: str | None) -> None:
    """Fail at a family's name that is none, and where a checkpoint says which it is."""
    if family is not None and model is not None:
        raise fail("expected --model or --family, and not both: a checkpoint has limits of its own")
    problem = family and no_such_family(family)
    if problem:
        raise fail(f"--family {problem}")


class OneLineErrors(TyperCommand):
    """A command whose wrong options are one line on stderr too, not a box."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class; the scripts in `debug/` call it without the group around it."""
        print_anywhere()
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise fail(f"{error.format_message()}; see {ctx.command_path} --help") from error


UsageError: Any = typer.BadParameter.__mro__[1]
"""click's, which some typer releases bring along under a name of their own."""
