"""Does the tower's time follow its tokens? `python -m benchmarks.vision_tower` (`--device cuda --dtype bfloat16`).

The tower of the real checkpoints (675M parameters: width 1280, 16 heads, 32 blocks) with random weights, which cost
the same time as trained ones. On a CPU `--depth 4` keeps it to minutes; every block does the same work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import UPSTREAM, budgets, hardware, photo, report, take_turns
from transformers_apt import patch_stats
from transformers_apt.models.flops import QWEN2_VL, tower_flops

SIZES = {"1 MP": (1316, 728), "4 MP": (2632, 1456)}


def main(
    alphas: Annotated[list[float] | None, typer.Option(help="Budgets to measure, repeatable.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Blocks; the real tower has 32.")] = 32,
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
    shape = replace(QWEN2_VL["7b"], tower_depth=depth)
    config = Qwen2VLVisionConfig(depth=depth, hidden_size=shape.hidden_size)
    tower = Qwen2VisionTransformerPretrainedModel(config).to(device, getattr(torch, dtype)).eval()
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 28 * 28 * 16384})
    rows: list[dict[str, Any]] = []
    for size in sizes or list(SIZES):
        picture = photo(*SIZES[size], image)
        settings = budgets(alphas or [0.2, 0.3, 0.5, 1.0], importance_method)
        cases, stats = {}, {}
        for name, setting in settings.items():
            inputs = processor(picture, return_tensors="pt", **setting)
            stats[name] = patch_stats(inputs)[0]
            pixels = inputs["pixel_values"].to(device, tower.dtype)
            grid = inputs["image_grid_thw"].to(device)
            layout = (
                {"patch_layout": inputs["image_patch_layout"].to(device)} if "image_patch_layout" in inputs else {}
            )
            cases[name] = lambda p=pixels, g=grid, kwargs=layout: tower(p, grid_thw=g, **kwargs)
        with torch.inference_mode():
            medians = take_turns(cases, repeats, warmup=1, label=size)
        flops = {
            name: tower_flops(one["vision_patches"], one["language_tokens"], shape) for name, one in stats.items()
        }
        for name in settings:
            speed_up = medians[UPSTREAM] / medians[name]
            ceiling = flops[UPSTREAM] / flops[name]
            rows.append(
                {
                    "image": size,
                    "method": name,
                    "patches": stats[name]["vision_patches"],
                    "TFLOP": flops[name] / 1e12,
                    "ms": medians[name],
                    "speed-up": speed_up,
                    "ceiling (FLOPs)": ceiling,
                    "reached": speed_up / ceiling,
                }
            )

    def plot(axes: Any) -> None:
        for size in dict.fromkeys(row["image"] for row in rows):
            found = [row for row in rows if row["image"] == size]
            axes.plot([row["ceiling (FLOPs)"] for row in found], [row["speed-up"] for row in found], "o-", label=size)
        top = max(row["ceiling (FLOPs)"] for row in rows)
        axes.plot([1, top], [1, top], "k:", label="ceiling")
        axes.set(
            xlabel="upstream's FLOPs / ours", ylabel="speed-up of the tower", title=f"vision tower, {depth} blocks"
        )
        axes.legend()

    about = {"hardware": hardware(device), "dtype": dtype, "depth": depth, "repeats": repeats}
    report(output, "vision_tower", rows, about, plot)


if __name__ == "__main__":
    typer.run(main)
