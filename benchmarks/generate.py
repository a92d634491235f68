"""Time to first token, preprocessing included, stage by stage: `python -m benchmarks.generate`.

    python -m benchmarks.generate --size 2b --size 7b --device cuda --dtype bfloat16 --batch 1 --batch 4 --batch 16
    python -m benchmarks.generate --model Qwen/Qwen2-VL-2B-Instruct --device cuda --dtype bfloat16 --image photo.jpg
    python -m benchmarks.generate --family qwen3_vl --size 8b --device cuda --dtype bfloat16 --kind document \\
        --setting '{"patch_selection_method": "budget", "alpha": 0.3}' --downscaled-like 'budget 0.3'

Without `--model`, the shapes of the published checkpoints with random weights, which cost the same time as trained
ones; `small` is for a CPU.
"""

from __future__ import annotations

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import (
    UPSTREAM,
    budgets,
    check_names,
    document,
    hardware,
    named_settings,
    photo,
    report,
    synchronise,
    take_turns,
    unlimited,
)
from benchmarks.memory import grown
from benchmarks.random_models import SMALL, config_of, random_model, sizes_of
from transformers_apt import image_layouts
from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.embedded.tiny_checkpoint import build_processor
from transformers_apt.models.flops import PUBLISHED, image_flops, shape_of

IMAGES = {"1080p": (1920, 1080), "4 MP": (2632, 1456), "512": (512, 512)}
KINDS = ("photo", "document")
STAGES = ("decode", "preprocess", "transfer", "tower", "first token")
PROMPT = "Describe this image in one sentence."


def main(
    size: Annotated[
        list[str] | None, typer.Option(help="A published one of the families, or small; repeatable.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help=f"Of {list(PUBLISHED)}, repeatable; default: qwen2_vl.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A real checkpoint instead: folder or hub id.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo of your own instead of the bundled one.")] = None,
    images: Annotated[list[str] | None, typer.Option(help=f"Of {list(IMAGES)}, repeatable.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help=f"Of {list(KINDS)}, repeatable; default: photo.")] = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="Images in each prompt.")] = 1,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Prompts at once, repeatable.")] = None,
    alphas: Annotated[list[float] | None, typer.Option(help="Budgets to measure, repeatable.")] = None,
    importance_method: Annotated[str, typer.Option(help="Importance map of these budgets.")] = "entropy",
    setting: Annotated[
        list[str] | None, typer.Option(help="Settings to measure beside them, or instead, as JSON; repeatable.")
    ] = None,
    downscaled_like: Annotated[
        list[str] | None,
        typer.Option(help="A setting by its name in the table: also upstream on images of as many language tokens."),
    ] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure the time to the first token and write `generate.json`, a table and a plot."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    settings = budgets(alphas or ([] if setting else [0.2, 0.3, 0.5]), importance_method)
    try:
        settings |= named_settings(setting or [])
        sizes = {name: sizes_of(name) for name in family or ["qwen2_vl"]}
        for published in sizes.values():
            check_names("--size", size, published)
        check_names("--images", images, IMAGES)
        check_names("--kind", kind, KINDS)
        check_names("--downscaled-like", downscaled_like, settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    rows: list[dict[str, Any]] = []
    models = [("", model)] if model else itertools.product(sizes, size or [SMALL])
    for of_family, name in models:
        if model:
            loaded, processor = load_checkpoint(model, device, dtype)
        else:
            processor = build_processor(family=of_family)  # type: ignore[arg-type]  # one of the families
            loaded = random_model(config_of(of_family, sizes[of_family][name], processor.tokenizer), device, dtype)
        processor.image_processor.size = unlimited(processor.image_processor.patch_size)
        weights = sum(weight.nbytes for weight in loaded.parameters())
        for area, picture, count in itertools.product(images or ["1080p"], kind or ["photo"], batch or [1]):
            drawn = photo(*IMAGES[area], image) if picture == "photo" else document(*IMAGES[area])
            file = io.BytesIO()
            drawn.save(file, format="JPEG", quality=92)
            case = {
                "family": loaded.config.model_type,
                "model": name,
                "attention": loaded.model.visual.config._attn_implementation,
                "image": area,
                "kind": picture,
                "prompts": count,
                "images": count * per_prompt,
                "weights GiB": weights / 2**30,
            }
            found = measure(loaded, processor, file, per_prompt, count, settings, repeats, downscaled_like or ())
            rows += [{**case, **row} for row in found]
        del loaded

    def plot(axes: Any) -> None:
        chosen = [row for row in rows if all(row[key] == rows[0][key] for key in ("prompts", "image", "kind"))]
        labels = [f"{row['family']} {row['model']}\n{row['method']}" for row in chosen]
        bottom = [0.0] * len(chosen)
        for stage in STAGES:
            height = [row[stage] for row in chosen]
            axes.bar(labels, height, bottom=bottom, label=stage)
            bottom = [below + above for below, above in zip(bottom, height, strict=True)]
        axes.set(
            ylabel="milliseconds to the first token",
            title=f"{rows[0]['kind']}, {rows[0]['image']}, {rows[0]['prompts']} prompt(s)",
        )
        axes.tick_params(axis="x", labelsize=7)
        axes.legend(fontsize=7)

    about = {"hardware": hardware(device), "dtype": dtype, "repeats": repeats, "importance_method": importance_method}
    report(output, "generate", rows, about, plot)


def measure(
    model: Any,
    processor: Any,
    file: io.BytesIO,
    per_prompt: int,
    prompts: int,
    settings: dict[str, dict[str, Any]],
    repeats: int,
    downscaled_like: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row per setting: patches, tokens, milliseconds per stage and in all, speed-up, what of the tower's
    multiply-adds was turned into time, peak memory. `there` is the same with the images prepared on the GPU.
    """
    content = [{"type": "image"}] * per_prompt + [{"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    count = prompts * per_prompt

    def decode() -> list[Image.Image]:
        return [Image.open(io.BytesIO(file.getvalue())).convert("RGB") for _ in range(count)]

    decoded = decode()

    def preprocess(setting: dict[str, Any]) -> Any:
        return processor(
            images=decoded, text=[text] * prompts, images_kwargs=setting, return_tensors="pt", padding=True
        )

    peaks: dict[str, float | None] = {}

    def first_token(inputs: Any) -> float:
        """Milliseconds that the tower took of it."""
        with stopwatch(model.model.visual) as spent:
            model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)
        return sum(spent)

    def generate(name: str) -> None:
        if name in peaks:
            tower[name].append(first_token(moved[name]))
        else:  # in the round that warms up
            peaks[name] = peak_memory(model, lambda: tower[name].append(first_token(moved[name])))

    on_gpu = model.device.type == "cuda"
    prepared = {name: preprocess(setting) for name, setting in settings.items()}
    layouts = {name: image_layouts(inputs) for name, inputs in prepared.items()}
    for like in downscaled_like:
        name, tokens = f"downscaled like {like}", layouts[like][0].num_language_tokens
        cell = 2 * processor.image_processor.patch_size
        settings = {**settings, name: downscaled(*decoded[0].size, tokens, cell)}
        prepared[name] = preprocess(settings[name])
        layouts[name] = image_layouts(prepared[name])

    def move(name: str) -> dict[str, torch.Tensor]:  # not by `to` of the batch, which would move what is in `prepared`
        return {key: value.to(model.device) for key, value in prepared[name].items()}

    moved = {name: move(name) for name in prepared}
    work = {
        "decode": lambda name: decode(),
        "preprocess": lambda name: preprocess(settings[name]),
        "preprocess there": lambda name: preprocess({**settings[name], "device": model.device}).to(model.device),
        "transfer": move,
        "generate": generate,
    }
    there = on_gpu
    if there:
        try:
            work["preprocess there"](UPSTREAM), work["preprocess there"](list(settings)[1])
        except Exception as error:  # the other stages are worth having all the same
            print(f"images cannot be prepared on the GPU: {error!r}")
            there = False
    tower: dict[str, list[float]] = {name: [] for name in settings}
    with torch.inference_mode():
        # what is loaded and packed once should be nobody's peak
        first_token(moved[min(prepared, key=lambda name: sum(layout.num_patches for layout in layouts[name]))])
        times = {
            stage: take_turns({name: lambda n=name, s=stage: work[s](n) for name in settings}, repeats, 1, stage)
            for stage in work
            if there or stage != "preprocess there"
        }
    shape = shape_of(model.config)
    flops = {name: sum(image_flops(layout, shape) for layout in found) for name, found in layouts.items()}
    rows: list[dict[str, Any]] = []
    for name in settings:
        stages = {stage: times[stage][name] for stage in STAGES[:-2]}
        stages["tower"] = statistics.median(tower[name][1:])
        # generate encodes the images too: what is left is the language model's prefill and the first step
        stages["first token"] = times["generate"][name] - stages["tower"]
        tokens = sum(layout.num_language_tokens for layout in layouts[name])
        row = {
            "method": name,
            "patches": sum(layout.num_patches for layout in layouts[name]),
            "image tokens": tokens,
            "tokens %": 100 * tokens / (rows[0]["image tokens"] if rows else tokens),
            **stages,
            "total ms": sum(stages.values()),
            "preprocess there": times["preprocess there"][name] if there else None,
        }
        first = rows[0] if rows else row
        ceiling, tower_speed_up = flops[UPSTREAM] / flops[name], first["tower"] / row["tower"]
        row |= {
            "speed-up": first["total ms"] / row["total ms"],
            "speed-up there": total_there(first) / total_there(row) if there else None,
            "tower speed-up": tower_speed_up,
            "ceiling (FLOPs)": ceiling,
            "reached": tower_speed_up / ceiling,
            "peak GiB": peaks[name],
        }
        rows.append(row)
    return rows


def total_there(row: dict[str, Any]) -> float:
    """Milliseconds to the first token where the images are prepared on the GPU, and so need not be moved there."""
    return sum(row[stage] for stage in ("decode", "preprocess there", "tower", "first token"))


def downscaled(width: int, height: int, tokens: int, cell: int) -> dict[str, Any]:
    """Upstream's settings that make an image as close to so many language tokens as its rounding allows."""
    shortest = 4 * cell**2

    def distance(limit: int) -> int:
        rows, columns = smart_resize(height, width, factor=cell, min_pixels=shortest, max_pixels=limit)
        return abs(rows * columns // cell**2 - tokens)

    limits = [max(shortest, tokens * cell**2 * percent // 100) for percent in range(90, 130)]
    best = min(limits, key=distance)
    return {"patch_selection_method": "off", "size": {"shortest_edge": shortest, "longest_edge": best}}


@contextmanager
def stopwatch(module: torch.nn.Module) -> Iterator[list[float]]:
    """The milliseconds that each call of the module takes in the meantime."""
    started: list[float] = []
    spent: list[float] = []

    def start(*call: Any) -> None:
        synchronise()
        started.append(time.perf_counter())

    def stop(*call: Any) -> None:
        synchronise()
        spent.append((time.perf_counter() - started.pop()) * 1e3)

    hooks = module.register_forward_pre_hook(start), module.register_forward_hook(stop)
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def peak_memory(model: Any, work: Callable[[], Any]) -> float | None:
    """Peak memory of `work`, the model's weights included, in GiB; `None` where the system does not tell."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        return (grown(work) + sum(weight.nbytes for weight in model.parameters())) / 2**30
    except OSError:
        work()
        return None


if __name__ == "__main__":
    typer.run(main)
