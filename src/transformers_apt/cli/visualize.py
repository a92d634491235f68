"""`transformers-apt visualize`: the options, and nothing slow before they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from transformers_apt.cli.messages import (
    BAD_INPUT,
    CHECKPOINT,
    DEVICES,
    check_choice,
    check_family,
    check_model,
    complain,
    fail,
)
from transformers_apt.models.families import NAMES

METHODS = ("v1", "v2", "budget", "joint", "fit", "off")
MAPS = ("entropy", "laplacian", "upsample_l4", "upsample_mse")
"""Named once more, because where they are made takes seconds to import; a test holds the two alike."""


def number_or_off(text: str) -> float | str:
    if text == "off":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number of grey levels nor 'off'") from None


def visualize(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="An image, or a folder: every image in it.")
    ] = None,
    input_image: Annotated[Path | None, typer.Option(help="The same as IMAGE.")] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the results: one folder in it per image.")
    ] = Path("visualizations"),
    model: Annotated[
        str | None, typer.Option(help=f"{CHECKPOINT}: use its image processor, and its settings.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help=f"Patch size and limits of a family's released checkpoints, without one: {', '.join(NAMES)}.",
            show_default="upstream's class: 14 px, at most 1.0 megapixels",
        ),
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="Side of the finest patch, in pixels.", show_default="14, or the model's")
    ] = None,
    temporal_patch_size: Annotated[int | None, typer.Option(help="Frames of a patch.", show_default="2")] = None,
    merge_size: Annotated[int | None, typer.Option(help="Only 2 works.", show_default="2")] = None,
    thresholds: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="For v1: cells of 2 and of 4 patches a side (28 and 56 px for Qwen2-VL) below these stay whole.",
            show_default="3 2, in bits",
        ),
    ] = None,
    patch_selection_method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)}.",
            show_default="v1; off with a later family",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="0 to 1: share of the patches kept (budget, joint), or of the language tokens allowed (fit). v2: "
            "larger, fewer patches."
        ),
    ] = None,
    importance_method: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(MAPS)}.", show_default="entropy"),
    ] = None,
    drop_tolerance: Annotated[
        Any,
        typer.Option(
            parser=number_or_off,
            metavar="NUMBER",
            help="Leave out plain cells that repeat their neighbour within so many grey levels; 2 is recommended.",
            show_default="off",
        ),
    ] = None,
    predict_tolerance: Annotated[
        Any,
        typer.Option(
            parser=number_or_off,
            metavar="NUMBER",
            help="Leave out cells whose pixels the left or upper neighbour predicts within so many grey levels.",
            show_default="off",
        ),
    ] = None,
    max_language_tokens: Annotated[
        int | None, typer.Option(help="For fit: the most language tokens of an image.", show_default="none")
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
        "drop_tolerance": drop_tolerance,
        "predict_tolerance": predict_tolerance,
        "max_language_tokens": max_language_tokens,
    }
    source = image or input_image
    if source is None or (image and input_image):
        raise fail("expected one image or folder: IMAGE or --input-image, and not both")
    if not os.path.exists(source):  # before anything slow is imported
        raise fail(f"{source} does not exist; expected an image file or a folder of them")
    check_model(model)
    check_family(family, model)
    check_choice("--patch-selection-method", patch_selection_method, METHODS)
    check_choice("--importance-method", importance_method, MAPS)
    check_choice("--device", device, DEVICES)

    from transformers_apt.visualizer import command as visualize_command

    try:
        errors = visualize_command.run(source, output, model, family, device, given, complain)
    except visualize_command.EXPECTED as error:
        raise fail(error) from error
    raise typer.Exit(BAD_INPUT if errors else 0)
