"""Adaptive patches in five short examples, each printed with what it gives: `python docs/quick_start.py`.

Runs without a download, on a picture and a very small model that the package brings along; `--model`, `--image` and
`--prompt` take yours.
"""

import copy
import inspect
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from transformers import Qwen2VLImageProcessor
from transformers.utils import logging

import transformers_apt
from transformers_apt import embedded, patch_stats
from transformers_apt.cli.comparison import label
from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.models.image_files import load_photo

console = Console()
RECOMMENDED = {"patch_selection_method": "v1", "importance_method": "upsample_mse", "drop_tolerance": 2}
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}


def image_processor_alone(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """The image processor alone, with the settings in its constructor."""
    patch_size = processor.image_processor.patch_size  # 14 px in Qwen2-VL and Qwen2.5-VL, 16 px in later families
    image_processor = Qwen2VLImageProcessor(patch_size=patch_size, **RECOMMENDED)
    pixels = image_processor(images=image, return_tensors="pt")

    rows = [(name, str(tuple(value.shape))) for name, value in pixels.items()]
    console.print(table("key", "shape", rows=rows))
    (stats,) = patch_stats(pixels)
    full = stats["grid"][0] * stats["grid"][1]
    console.print(f"{stats['vision_patches']:,} of {full:,} patches are left.")


def through_the_processor(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """The usual way: `images_kwargs` in the call. A processor's own settings give the same."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    by_call = processor(images=image, text=prompt, images_kwargs=RECOMMENDED, return_tensors="pt")

    for name, value in RECOMMENDED.items():
        setattr(processor.image_processor, name, value)
    by_attribute = processor(images=image, text=prompt, return_tensors="pt")

    upstream = processor(images=image, text=prompt, images_kwargs={"patch_selection_method": "off"})
    same = torch.equal(by_call["image_patch_layout"], by_attribute["image_patch_layout"])
    console.print(
        f"prompt and image: {by_call['input_ids'].shape[1]} tokens, upstream {len(upstream['input_ids'][0])}"
    )
    console.print(f"call and attribute choose the same patches: {same}")


def full_inference(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """From the image to an answer: `generate` takes what the processor returns. Upstream, the recommended setting,
    and a number of tokens."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    console.print(f"{question}\n")
    for settings in ({"patch_selection_method": "off"}, RECOMMENDED, {"patch_selection_method": "fit", "alpha": 0.45}):
        inputs = processor(images=image, text=prompt, images_kwargs=settings, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        answer = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        console.print(f"{label(settings):>24}: {answer}", markup=False, highlight=False)
    console.print("\nOne picture proves nothing: docs/quality.md has the figures.")


def methods_compared(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """What every method makes of the same image."""
    image_processor = processor.image_processor
    sides = [image_processor.patch_size * size for size in (1, 2, 4)]
    rows = []
    for settings in (
        {"patch_selection_method": "off"},
        {"patch_selection_method": "v1"},
        {"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [36, 36]},
        {"patch_selection_method": "v2", "alpha": 0.5},
        {"patch_selection_method": "v2", "alpha": 1.0},
        {"patch_selection_method": "budget", "alpha": 0.5},
        {"patch_selection_method": "budget", "alpha": 0.3},
        {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"},
        {"patch_selection_method": "joint", "alpha": 0.3, "importance_method": "upsample_mse"},
    ):
        pixels = image_processor(images=image, return_tensors="pt", **settings)
        (stats,) = patch_stats(pixels, image_processor.patch_size)
        by_px = [f"{stats['patches_by_px'].get(side, 0):,}" for side in sides]
        rows.append((label(settings), *by_px, f"{stats['retention']:.0%}", f"{stats['language_tokens']:,}"))

    console.print(table("method", *(f"{side} px" for side in sides), "patches kept", "language tokens", rows=rows))
    console.print("A smaller alpha saves more with budget and joint, a larger one with v2.")


def debugging_and_monitoring(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """What was asked for, what came out, and what a warning tells."""
    image_processor = processor.image_processor
    pixels = image_processor(images=[image, image.resize((280, 196))], return_tensors="pt", **BUDGET)
    plans = image_processor.last_budget_info  # one per image of this thread's last call
    found = patch_stats(pixels, image_processor.patch_size)  # from the output alone, whatever the method

    rows = [(name, *(f"{plan[name]}" for plan in plans)) for name in plans[0]]
    rows += [(name, *(f"{stats[name]}" for stats in found)) for name in ("grid", "patches_by_px", "language_tokens")]
    console.print(table("", "the image", "280 × 196 px", rows=rows))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_processor(images=image, return_tensors="pt", patch_selection_method="budget", alpha=0.01)
    console.print(f"a budget that cannot be met: {caught[-1].message}", highlight=False)


EXAMPLES: tuple[Callable[..., None], ...] = (
    image_processor_alone,
    through_the_processor,
    full_inference,
    methods_compared,
    debugging_and_monitoring,
)


def table(*headers: str, rows: list[tuple[str, ...]]) -> Table:
    """The first column to the left, the others to the right."""
    found = Table(box=SIMPLE_HEAD)
    for index, header in enumerate(headers):
        found.add_column(header, justify="right" if index else "left")
    for row in rows:
        found.add_row(*row)
    return found


def main(
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a checkpoint of yours.")] = None,
    image: Annotated[Path | None, typer.Option(help="The image to look at; default: one the package brings.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
    code: Annotated[bool, typer.Option(help="Print the code of each example.")] = True,
) -> None:
    """Five short examples of adaptive patches, each printed with what it gives."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    transformers_apt.apply()
    example = embedded.examples()[0]
    picture = load_photo(image or example.image)
    question = prompt or ("Describe this image." if image or model else example.question)
    checkpoint, processor = load_checkpoint(model, device, dtype)
    if model is None:
        console.print(
            "[yellow]No --model given: this is the package's own very small model. It knows drawn scenes "
            "and a handful of questions, nothing else.[/yellow]"
        )
    for number, show in enumerate(EXAMPLES, start=1):
        console.print()
        console.rule(f"[bold]{number}. {show.__name__.replace('_', ' ')}", align="left")
        console.print(show.__doc__)
        if code:
            body = textwrap.dedent(inspect.getsource(show).split('"""\n', 1)[1]).rstrip()
            console.print(Panel(Syntax(body, "python", word_wrap=True), border_style="dim"))
        show(copy.deepcopy(processor), checkpoint, picture, question)  # examples change its settings


if __name__ == "__main__":
    typer.run(main)
