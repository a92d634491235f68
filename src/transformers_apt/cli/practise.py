"""`transformers-apt practise`: the options, and nothing slow before they are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from transformers_apt.cli.messages import CHECKPOINT, DTYPES, check_choice, check_model, complain, fail

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""


def practise(
    out: Annotated[Path, typer.Option(help="Folder for what has practised. The same command goes on from there.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    model: Annotated[str | None, typer.Option(help=f"{CHECKPOINT}.", show_default="the embedded one")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask about each image; may be repeated.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='JSONL: {"image": path in --images, "prompt": text}; instead of --prompt.')
    ] = None,
    student: Annotated[str, typer.Option(help="What practises: 'branch', or 'lora' on tower and merger.")] = "branch",
    minutes: Annotated[float, typer.Option(help="How long, earlier calls included.")] = 60,
    steps: Annotated[int | None, typer.Option(min=1, help="The most steps.", show_default="none")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step, of all processes together.")] = 8,
    views: Annotated[int, typer.Option(min=1, help="Random settings that each image of a step is read under.")] = 2,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer of the teacher is cut off.")] = 32,
    held_out: Annotated[int, typer.Option(min=1, help="Prompts to judge by, a fifth of all at most.")] = 64,
    save_minutes: Annotated[float, typer.Option(help="Minutes between saved states.")] = 5,
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare images.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of settings, order and what is held out.")] = 0,
) -> None:
    """Let a model practise on mixed patches with itself at full resolution as the teacher. No labels needed.

    What it gained is printed, for images that were held out. A loss is exit code 1, and nothing is saved.

    For several processes: accelerate launch --multi_gpu --no_python transformers-apt practise ...
    """
    for name, path, found in (("--images", images, images.is_dir()), ("--prompts", prompts, _is_file(prompts))):
        if not found:
            raise fail(f"{name} {path} does not exist; expected {'a folder' if path is images else 'a JSONL file'}")
    check_model(model)
    _check_out(out, model)
    check_choice("--dtype", dtype, DTYPES)
    from transformers_apt.cli import practising
    from transformers_apt.training.practice import GotWorseError, Plan

    try:
        plan = Plan(
            student=student,
            minutes=minutes,
            steps=math.inf if steps is None else steps,
            batch=batch,
            views=views,
            lr=lr,
            max_new_tokens=max_new_tokens,
            seed=seed,
            save_every=60 * save_minutes,
            workers=workers,
        )
        rows = practising.rows_of(images, prompt or [], prompts, held_out, seed)
        table = practising.run(model, dtype, rows, plan, out)
    except GotWorseError as error:
        complain("[red]worse:[/red]", error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        complain("[yellow]stopped:[/yellow]", "the same command goes on from the state that was saved last")
        raise typer.Exit(INTERRUPTED) from error
    except practising.EXPECTED as error:
        raise fail(error) from error
    if table is not None:
        Console(emoji=False).print(table, markup=False, highlight=False, soft_wrap=True)


def _check_out(out: Path, model: str | None) -> None:
    file = next((path for path in (out, *out.parents) if path.is_file()), None)
    if file is not None:
        raise fail(f"--out {out}: {file} is a file; expected a folder")
    if model is not None and out.is_dir() and Path(model).is_dir() and out.samefile(model):
        raise fail(f"--out {out} is the model's own folder; expected one of its own, such as {out / 'branch'}")


def _is_file(path: Path | None) -> bool:
    return path is None or path.is_file()
