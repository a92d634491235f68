"""The `transformers-apt` command."""

from __future__ import annotations

import codecs
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from transformers_apt.app_cli import app_command
from transformers_apt.visualize_names import readable

BAD_INPUT = 2
PLAIN = {"×": "x", "…": "...", "✓": "(right)", "✗": "(wrong)", "²": "^2", "–": "-", "’": "'"}
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


app = typer.Typer(
    cls=Commands,
    help="Adaptive Patch Tokenization for Qwen2-VL in transformers.",
    no_args_is_help=True,
    add_completion=False,
)


def main() -> None:
    """Entry point of the installed command."""
    app()


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
    if model is not None and model.startswith((".", "/", "~")) and not os.path.isdir(os.path.expanduser(model)):
        raise fail(
            f"{model} is not a folder; expected a checkpoint folder or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )


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


@app.command()
def status() -> None:
    """Is the patch on, for which versions, and if not, why? Exit code 1 when it is off."""
    from transformers_apt import patching, startup

    try:
        # what any program does that uses Qwen2-VL, and what the start-up hook waits for
        from transformers.models.qwen2_vl import modeling_qwen2_vl  # noqa: F401
    except ImportError as error:
        patching.record_failure(error)
    found = patching.status()
    reason = found.reason
    if not found.active and reason is None:
        switched_off = f"the environment variable {startup.SWITCH}={os.environ.get(startup.SWITCH)} switches it off"
        not_hooked = "the start-up hook is not installed in this environment; call transformers_apt.apply()"
        reason = switched_off if startup.is_switched_off() else not_hooked
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("adaptive patches", "[green]on[/green]" if found.active else "[red]off[/red]")
    if not found.active:
        table.add_row("because", reason)
    table.add_row("transformers-apt", found.package_version)
    table.add_row("transformers", f"{found.transformers_version or 'not installed'} (supported: {found.supported})")
    if found.active:
        table.add_row("changed upstream", "\n".join(sorted({name.split(".")[0] for name in found.targets})))
    Console().print(table)
    raise typer.Exit(0 if found.active else 1)


@app.command(cls=OneLineErrors)
def demo(
    photo_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE", help="The image to look at; default: the embedded examples.", show_default=False
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a Qwen2-VL checkpoint.")] = None,
    image: Annotated[Path | None, typer.Option(help="The same as IMAGE.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it; default: the example's question.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each setting, after a warm-up.")] = 5,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', …")] = "auto",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
) -> None:
    """Run one image through every method, and print tokens, times and answers next to upstream's."""
    if image is not None and photo_file is not None:
        raise fail("expected one image: IMAGE or --image, and not both")
    image = image or photo_file
    if image is not None and not os.path.isfile(image):  # before anything slow is imported
        what = "it is a folder" if os.path.isdir(image) else "it does not exist"
        raise fail(f"{image} cannot be read as an image: {what}; expected an image file")
    check_model(model)
    if dtype not in ("float32", "bfloat16", "float16"):
        raise fail(f"--dtype {dtype}: expected float32, bfloat16 or float16")
    import torch
    from huggingface_hub.errors import HFValidationError

    import transformers_apt
    from transformers_apt import demo as demonstration
    from transformers_apt import embedded

    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    console = Console(emoji=False)
    try:
        transformers_apt.apply()
        examples = embedded.examples() if image is None else []
        photo = demonstration.load_photo(image or examples[0].image)
        checkpoint, processor = demonstration.load_checkpoint(model, device, dtype)
    except (
        OSError,
        ValueError,
        ModuleNotFoundError,
        RuntimeError,
        HFValidationError,
        transformers_apt.IncompatibleTransformersError,
    ) as error:
        raise fail(error) from error
    expected = examples[0].answer if examples and prompt is None else None
    prompt = prompt or (examples[0].question if examples else "Describe this image." if model else "Read the code.")
    console.print(f"Answers come from {escape(demonstration.describe_model(model, checkpoint, device))}.")
    if model is None:
        console.print("[yellow]So small a model says little about the times of yours: pass it with --model.[/yellow]")
    cuda = device.startswith("cuda")
    threads = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} CPU threads"
    shown = escape(readable(str(image or examples[0].image.name)))
    console.print(f"{shown}, {photo.width}×{photo.height} px, {platform.machine()} {device} ({threads}), {dtype}")
    console.print(f"[bold]{escape(prompt)}[/bold]" + (f" Right is: {expected}" if expected else "") + "\n")
    rows = demonstration.measure(checkpoint, processor, photo, prompt, max_new_tokens=max_new_tokens, repeats=repeats)
    demonstration.show(console, rows, expected)
    if expected is not None:
        demonstration.show_examples(console, checkpoint, processor, examples[1:])


@app.command(cls=OneLineErrors)
def visualize(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="An image, or a folder: every image in it.")
    ] = None,
    input_image: Annotated[Path | None, typer.Option(help="The same as IMAGE.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the results: one folder in it per image.")
    ] = Path("visualizations"),
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id: use this checkpoint's image processor, and its settings.")
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="Side of the finest patch, in pixels.", show_default="14")
    ] = None,
    temporal_patch_size: Annotated[int | None, typer.Option(help="Frames of a patch.", show_default="2")] = None,
    merge_size: Annotated[int | None, typer.Option(help="Qwen2-VL's; only 2 works.", show_default="2")] = None,
    thresholds: Annotated[
        tuple[float, float] | None,
        typer.Option(help="For v1: cells of 28 and of 56 px below these stay whole.", show_default="3 2, in bits"),
    ] = None,
    patch_selection_method: Annotated[
        str | None, typer.Option(help="'v1', 'v2', 'budget', 'joint' or 'off'.", show_default="v1")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="budget, joint: share of the patches kept, 0 to 1. v2: larger, fewer patches.")
    ] = None,
    importance_method: Annotated[
        str | None, typer.Option(help="'entropy', 'laplacian' or 'upsample_mse'.", show_default="entropy")
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
) -> None:
    """Draw what the processor makes of an image: importance maps, tiling, what the model sees, and the numbers.

    Exit code 2 when an option or an image cannot be used; in a folder, the other images are still drawn.
    """
    given = {
        "patch_size": patch_size,
        "temporal_patch_size": temporal_patch_size,
        "merge_size": merge_size,
        "thresholds": list(thresholds) if thresholds else None,
        "patch_selection_method": patch_selection_method,
        "alpha": alpha,
        "importance_method": importance_method,
    }
    source = image or input_image
    if source is None or (image and input_image):
        raise fail("expected one image or folder: IMAGE or --input-image, and not both")
    if not os.path.exists(source):  # before anything slow is imported
        raise fail(f"{source} does not exist; expected an image file or a folder of them")
    check_model(model)

    from transformers_apt import visualize_command

    try:
        errors = visualize_command.run(source, output, model, device, given, complain)
    except visualize_command.EXPECTED as error:
        raise fail(error) from error
    raise typer.Exit(BAD_INPUT if errors else 0)


app.command("app", cls=OneLineErrors)(app_command)
