"""`transformers-apt demo`: the options, and nothing slow before they are read."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from transformers_apt.cli.messages import CHECKPOINT, check_model, fail
from transformers_apt.visualizer.names import readable


def demo(
    photo_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE", help="The image to look at; default: the embedded examples.", show_default=False
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"{CHECKPOINT}.", show_default="the embedded one")] = None,
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
    from transformers_apt import embedded
    from transformers_apt.cli import comparison
    from transformers_apt.embedded import asking

    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    console = Console(emoji=False)
    try:
        transformers_apt.apply()
        examples = embedded.examples() if image is None else []
        photo = asking.load_photo(image or examples[0].image)
        checkpoint, processor = asking.load_checkpoint(model, device, dtype)
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
    console.print(f"Answers come from {escape(asking.describe_model(model, checkpoint, device))}.")
    if model is None:
        console.print("[yellow]So small a model says little about the times of yours: pass it with --model.[/yellow]")
    if asking.default_method(checkpoint) == "off":
        console.print(
            "[yellow]For this family adaptive patches are off by default; each row asks for its own.[/yellow]"
        )
    cuda = device.startswith("cuda")
    threads = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} CPU threads"
    shown = escape(readable(str(image or examples[0].image.name)))
    console.print(f"{shown}, {photo.width}×{photo.height} px, {platform.machine()} {device} ({threads}), {dtype}")
    console.print(f"[bold]{escape(prompt)}[/bold]" + (f" Right is: {expected}" if expected else "") + "\n")
    rows = comparison.measure(checkpoint, processor, photo, prompt, max_new_tokens=max_new_tokens, repeats=repeats)
    comparison.show(console, rows, expected)
    if expected is not None:
        comparison.show_examples(console, checkpoint, processor, examples[1:])
