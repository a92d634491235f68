"""The `transformers-apt` command: its sub-commands, a file each."""

from __future__ import annotations

from typing import Annotated

import typer

from transformers_apt import __version__
from transformers_apt.cli.app import app_command
from transformers_apt.cli.demo import demo
from transformers_apt.cli.messages import Commands, OneLineErrors
from transformers_apt.cli.practise import practise
from transformers_apt.cli.status import status
from transformers_apt.cli.visualize import visualize

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"transformers-apt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Adaptive Patch Tokenization for Qwen-VL in transformers."""


app.command()(status)
app.command(cls=OneLineErrors)(demo)
app.command(cls=OneLineErrors)(visualize)
app.command(cls=OneLineErrors)(practise)
app.command("app", cls=OneLineErrors)(app_command)


def main() -> None:
    """Entry point of the installed command."""
    app()
