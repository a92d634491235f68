"""Does the tower's time follow its tokens? `python -m benchmarks.vision_tower` (`--device cuda --dtype bfloat16`).

The tower of the published checkpoints (Qwen2-VL's: 675M parameters, width 1280, 16 heads, 32 blocks) with random
weights, which cost the same time as trained ones, or that of `--model`. On a CPU `--depth 4` keeps it to minutes;
every block does the same work, or every block of its kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import UPSTREAM, budgets, check_names, hardware, photo, report, take_turns, unlimited
from benchmarks.random_models import config_of, random_tower, shortened, sizes_of
from transformers_apt import image_layouts
from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.embedded.tiny_checkpoint import build_processor
from transformers_apt.models.flops import PUBLISHED, Shape, image_flops, shape_of

SIZES = {"1 MP": (1316, 728), "4 MP": (2632, 1456)}


def make_tower(family: str, size: str | None, depth: int | None, device: str, dtype: str) -> tuple[Any, Any, Shape]:
    """`(tower, image processor, shape)` with random weights; by default the family's largest."""
    shapes = sizes_of(family)
    size = size or list(shapes)[-1]
    if size not in shapes:
        raise ValueError(f"--size {size}: expected one of {list(shapes)}")
    shape = shapes[size] if depth is None else shortened(shapes[size], depth)
    processor = build_processor(family=family)  # type: ignore[arg-type]  # one of the families
    return random_tower(config_of(family, shape), device, dtype), processor.image_processor, shape


def main(
    family: Annotated[str, typer.Option(help=f"Of {list(PUBLISHED)}.")] = "qwen2_vl",
    size: Annotated[
        str | None, typer.Option(help="A published one of the family, or small.", show_default="the largest")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A real checkpoint instead: folder or hub id.")] = None,
    alphas: Annotated[list[float] | None, typer.Option(help="Budgets to measure, repeatable.")] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks; not with --model.", show_default="the real tower's")
    ] = None,
    sizes: Annotated[list[str] | None, typer.Option(help=f"Of {list(SIZES)}, repeatable.")] = None,
    importance_method: Annotated[str, typer.Option(help="Importance map of the selection.")] = "entropy",
    image: Annotated[Path | None, typer.Option(help="A photo of your own instead of the bundled one.")] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure the vision tower and write `vision_tower.json`, a table and a plot."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    if model and depth is not None:
        raise typer.BadParameter("--depth with --model: expected one of the two; a checkpoint's tower is as it is")
    try:
        check_names("--sizes", sizes, SIZES)
        if model:
            loaded, whole = load_checkpoint(model, device, dtype)
            tower, processor, shape = loaded.model.visual, whole.image_processor, shape_of(loaded.config)
            family = loaded.config.model_type
        else:
            tower, processor, shape = make_tower(family, size, depth, device, dtype)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    processor.size = unlimited(processor.patch_size)
    rows: list[dict[str, Any]] = []
    for name_of_size in sizes or list(SIZES):
        picture = photo(*SIZES[name_of_size], image)
        settings = budgets(alphas or [0.2, 0.3, 0.5, 1.0], importance_method)
        cases, layouts = {}, {}
        for name, setting in settings.items():
            inputs = processor(picture, return_tensors="pt", **setting)
            layouts[name] = image_layouts(inputs)[0]
            pixels = inputs["pixel_values"].to(device, tower.dtype)
            grid = inputs["image_grid_thw"].to(device)
            names = ("patch_layout", "patch_counts")
            layout = {name: inputs[f"image_{name}"].to(device) for name in names if f"image_{name}" in inputs}
            cases[name] = lambda p=pixels, g=grid, kwargs=layout: tower(p, grid_thw=g, **kwargs)
        with torch.inference_mode():
            medians = take_turns(cases, repeats, warmup=1, label=name_of_size)
        flops = {name: image_flops(layout, shape) for name, layout in layouts.items()}
        for name in settings:
            speed_up = medians[UPSTREAM] / medians[name]
            ceiling = flops[UPSTREAM] / flops[name]
            rows.append(
                {
                    "image": name_of_size,
                    "method": name,
                    "patches": layouts[name].num_patches,
                    "TFLOP": flops[name] / 1e12,
                    "ms": medians[name],
                    "speed-up": speed_up,
                    "ceiling (FLOPs)": ceiling,
                    "reached": speed_up / ceiling,
                }
            )

    def plot(axes: Any) -> None:
        for image_size in dict.fromkeys(row["image"] for row in rows):
            found = [row for row in rows if row["image"] == image_size]
            ceilings, reached = ([row[key] for row in found] for key in ("ceiling (FLOPs)", "speed-up"))
            axes.plot(ceilings, reached, "o-", label=image_size)
        top = max(row["ceiling (FLOPs)"] for row in rows)
        axes.plot([1, top], [1, top], "k:", label="ceiling")
        axes.set(
            xlabel="upstream's FLOPs / ours",
            ylabel="speed-up of the tower",
            title=f"vision tower of {family}, {shape.tower.depth} blocks",
        )
        axes.legend()

    about = {
        "hardware": hardware(device),
        "family": family,
        "model": model,
        "dtype": dtype,
        "depth": shape.tower.depth,
        "repeats": repeats,
    }
    report(output, "vision_tower", rows, about, plot)


if __name__ == "__main__":
    typer.run(main)
