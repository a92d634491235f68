"""Five demos of patch selection, with the tiling drawn in the terminal: `python docs/demo_patch_selection.py`.

Runs without a download, on a picture and a very small model that the package brings along; `--model`, `--image` and
`--prompt` take yours.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import Qwen2VLImageProcessor
from transformers.utils import logging

import transformers_apt
from apt_code import PatchLayout
from transformers_apt import embedded, image_layouts, patch_stats
from transformers_apt.cli.comparison import label, measure, show
from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.models.image_files import load_photo

console = Console()
RECOMMENDED = {"patch_selection_method": "v1", "importance_method": "upsample_mse", "drop_tolerance": 2}
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
LOOK = {1: ("██", "yellow"), 2: ("▒▒", "cyan"), 4: ("··", "magenta"), 0: ("  ", "white")}
"""Sign and colour of a cell of one base patch by the size of the patch that covers it, 0 for none. Legible without
colours too."""


def tiling(layout: PatchLayout, step: int) -> Text:
    """Each cell of one base patch as two characters, every `step`-th of them in both directions."""
    sizes = layout.sizes[layout.owner].where(layout.owner >= 0, 0)[::step, ::step]
    drawn = Text()
    for row in sizes.tolist():
        for size in row:
            drawn.append(LOOK[size][0], LOOK[size][1])
        drawn.append("\n")
    return drawn


def demo_image_processor(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """The image processor alone. Fine patches go where the importance map says that something is at stake."""
    pictures = []
    patch_size = processor.image_processor.patch_size
    for settings in (RECOMMENDED, {**BUDGET, "importance_method": "upsample_mse"}):
        image_processor = Qwen2VLImageProcessor(patch_size=patch_size, **settings)
        pixels = image_processor(images=image, return_tensors="pt")
        (layout,) = image_layouts(pixels)
        h, w = layout.grid
        counts = f"{layout.num_patches:,} of {h * w:,} patches, {layout.num_language_tokens:,} language tokens"
        step = -(-2 * max(h, w) // 72)  # at most 72 characters wide
        pictures.append(Text.assemble((f"{label(settings)}: {counts}\n", "bold"), tiling(layout, step)))
    names = {size: f"{patch_size * size} px" if size else "left out" for size in LOOK}
    legend = ((f" {sign} {names[size]} ", colour) for size, (sign, colour) in LOOK.items())
    console.print(Text.assemble(*legend))
    console.print(Columns(pictures, padding=(0, 4)))


def demo_processor(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """Through the processor: the prompt gets one placeholder per language token, and all three ways agree."""
    prompt = f"<|vision_start|><|image_pad|><|vision_end|>{question}"
    by_call = processor(images=image, text=prompt, images_kwargs=RECOMMENDED, return_tensors="pt")
    for name, value in RECOMMENDED.items():
        setattr(processor.image_processor, name, value)
    by_attribute = processor(images=image, text=prompt, return_tensors="pt")
    names = ("size", "patch_size", "image_mean", "image_std")  # as the checkpoint has them
    own = {name: getattr(processor.image_processor, name) for name in names}
    processor.image_processor = Qwen2VLImageProcessor(**RECOMMENDED, **own)
    by_constructor = processor(images=image, text=prompt, return_tensors="pt")

    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    found = Table("passed in", box=SIMPLE_HEAD)
    for header in ("patches", "placeholders", "same patches"):
        found.add_column(header, justify="right")
    for name, inputs in (
        ("the call (images_kwargs)", by_call),
        ("the attributes", by_attribute),
        ("the constructor", by_constructor),
    ):
        same = torch.equal(inputs["image_patch_layout"], by_call["image_patch_layout"])
        placeholders = int((inputs["input_ids"] == pad).sum())
        found.add_row(name, f"{len(inputs['pixel_values']):,}", f"{placeholders:,}", "yes" if same else "no")
    console.print(found)


def demo_comparison(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """Methods and alphas, as the fraction of patches and of language tokens that is left."""
    found = Table("method", box=SIMPLE_HEAD)
    for header in ("patches", "", "language tokens", ""):
        found.add_column(header, justify="left" if header == "" else "right")
    settings: list[dict[str, Any]] = [{"patch_selection_method": "off"}, {"patch_selection_method": "v1"}]
    settings += [{"patch_selection_method": "v2", "alpha": alpha} for alpha in (0.5, 1.0, 1.2)]
    settings += [{"patch_selection_method": "budget", "alpha": alpha} for alpha in (0.7, 0.5, 0.3, 0.2, 0.1)]
    settings += [{"patch_selection_method": "joint", "alpha": 0.3, "importance_method": "upsample_mse"}]
    settings += [{"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [16, 16]}]
    settings += [{**settings[-1], "drop_tolerance": 2}]
    for one in settings:
        (stats,) = patch_stats(processor.image_processor(images=image, return_tensors="pt", **one))
        h, w = stats["grid"]
        tokens = stats["language_tokens"] / (h * w / 4)
        shares = (stats["retention"], tokens)
        cells = [cell for share in shares for cell in (f"{share:.0%}", Text("━" * round(20 * share), "green"))]
        found.add_row(label(one), *cells)
    console.print(found)


def demo_performance(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """Times next to upstream's, measured here and now. Two rounds on a busy machine say little; see `make demo`."""
    rows = measure(model, processor, image, question, ask=False, max_new_tokens=4, repeats=2)
    show(console, rows)


def demo_code_integration(processor: Any, model: Any, image: Image.Image, question: str) -> None:
    """Inside your own modelling code: hand on what the processor returned, and each image's tokens come out."""
    images = [image, image.resize((280, 196))]
    prompt = "<|vision_start|><|image_pad|><|vision_end|>" * len(images) + "What differs?"
    inputs = processor(images=images, text=prompt, images_kwargs=RECOMMENDED, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        features = model.model.get_image_features(
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            image_patch_layout=inputs["image_patch_layout"],
            image_patch_counts=inputs["image_patch_counts"],
        ).pooler_output
        logits = model(**inputs).logits
    fine, middle, coarse = (processor.image_processor.patch_size * size for size in (1, 2, 4))
    for number, (stats, tokens) in enumerate(zip(patch_stats(inputs), features, strict=True), start=1):
        console.print(
            f"image {number}: {stats['vision_patches']:,} patches of {fine}, {middle} and {coarse} px -> "
            f"{len(tokens):,} language tokens of width {tokens.shape[1]}"
        )
    console.print(f"logits: {tuple(logits.shape)} (prompts, tokens, vocabulary)")


DEMOS: tuple[Callable[..., None], ...] = (
    demo_image_processor,
    demo_processor,
    demo_comparison,
    demo_performance,
    demo_code_integration,
)


def main(
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a checkpoint of yours.")] = None,
    image: Annotated[Path | None, typer.Option(help="The image to look at; default: one the package brings.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
) -> None:
    """Five demos of patch selection, with the tiling drawn in the terminal."""
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
    for number, demo in enumerate(DEMOS, start=1):
        console.print()
        console.rule(f"[bold]{number}. {demo.__name__.removeprefix('demo_').replace('_', ' ')}", align="left")
        console.print(f"{demo.__doc__}\n")
        demo(copy.deepcopy(processor), checkpoint, picture, question)  # demos change its settings


if __name__ == "__main__":
    typer.run(main)
