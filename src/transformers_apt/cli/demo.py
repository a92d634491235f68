"""`transformers-apt demo`: the options, and nothing slow before they are read."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from transformers_apt.cli.messages import CHECKPOINT, DTYPES, check_choice, check_model, fail
from transformers_apt.cli.progress import progress
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
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to ask about it; default: the example's question. About your own image the embedded model is "
            "asked nothing unless you say what."
        ),
    ] = None,
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
    check_choice("--dtype", dtype, DTYPES)
    with progress() as step:
        step("loading PyTorch and transformers")
        import torch
        from huggingface_hub.errors import HFValidationError

        import transformers_apt
        from transformers_apt import embedded
        from transformers_apt.cli import comparison
        from transformers_apt.embedded import asking
        from transformers_apt.models.image_files import load_photo

    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    console = Console(emoji=False)
    try:
        transformers_apt.apply()
        examples = embedded.examples() if image is None else []
        photo = load_photo(image or examples[0].image)
        with progress() as step:
            step(f"loading {readable(model) if model else 'the embedded model'}")
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
    ask = bool(prompt or examples or model)  # the embedded model knows four questions, and none about other pictures
    prompt = prompt or (examples[0].question if examples else "Describe this image.")
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
    console.print(f"Resized to {asking.describe_limit(processor, checkpoint)}.", highlight=False)
    if photo.width * photo.height > processor.image_processor.size["longest_edge"] and model is None:
        console.print("[yellow]transformers-apt visualize --family qwen2_vl shows it at a released one's.[/yellow]")
    if ask:
        console.print(f"[bold]{escape(prompt)}[/bold]" + (f" Right is: {expected}" if expected else ""))
    console.print()
    who = asking.describe_practice(model)
    with progress(comparison.steps(repeats)) as step:
        rows = comparison.measure(
            checkpoint, processor, photo, prompt, ask=ask, max_new_tokens=max_new_tokens, repeats=repeats, step=step
        )
    comparison.show(console, rows, who if ask else None, expected)
    if not ask:
        console.print(
            "The embedded model knows the examples' four questions and nothing about other pictures, so it was not "
            "asked. Ask a model of yours: --model, and --prompt for another question than 'Describe this image.'",
            highlight=False,
        )
    if expected is not None:
        with progress(len(examples) - 1) as step:
            table = comparison.answer_examples(checkpoint, processor, examples[1:], step)
        console.print(f"The other examples: answers of {who}", table)
