"""Time to first token, preprocessing included, stage by stage: `python -m benchmarks.generate`.

    python -m benchmarks.generate --size 2b --size 7b --device cuda --dtype bfloat16 --batch 1 --batch 4 --batch 16
    python -m benchmarks.generate --model Qwen/Qwen2-VL-2B-Instruct --device cuda --dtype bfloat16 --image photo.jpg

    python -m benchmarks.generate --family qwen3_vl --size 8b --device cuda --dtype bfloat16

Without `--model`, the shapes of the published checkpoints with random weights, which cost the same time as trained
ones; `small` is for a CPU.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import budgets, hardware, photo, report, synchronise, take_turns, unlimited
from benchmarks.random_models import SMALL, config_of, random_model, sizes_of
from transformers_apt import patch_stats
from transformers_apt.embedded.asking import load_checkpoint
from transformers_apt.embedded.tiny_checkpoint import build_processor
from transformers_apt.models.flops import PUBLISHED

IMAGES = {"1080p": (1920, 1080), "4 MP": (2632, 1456), "512": (512, 512)}
STAGES = ("decode", "preprocess", "transfer", "tower", "first token")
PROMPT = "Describe this image in one sentence."


def main(
    size: Annotated[
        list[str] | None, typer.Option(help="A published one of the family, or small; repeatable.")
    ] = None,
    family: Annotated[str, typer.Option(help=f"Of {list(PUBLISHED)}.")] = "qwen2_vl",
    model: Annotated[str | None, typer.Option(help="A real checkpoint instead: folder or hub id.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo of your own instead of the bundled one.")] = None,
    images: Annotated[list[str] | None, typer.Option(help=f"Of {list(IMAGES)}, repeatable.")] = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="Images in each prompt.")] = 1,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Prompts at once, repeatable.")] = None,
    alphas: Annotated[list[float] | None, typer.Option(help="Budgets to measure, repeatable.")] = None,
    importance_method: Annotated[str, typer.Option(help="Importance map of the selection.")] = "entropy",
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure the time to the first token and write `generate.json`, a table and a plot."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    settings = budgets(alphas or [0.2, 0.3, 0.5], importance_method)
    rows: list[dict[str, Any]] = []
    try:
        sizes = sizes_of(family)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    unknown = set(size or ()) - set(sizes)
    if unknown:
        raise typer.BadParameter(f"--size {sorted(unknown)[0]}: expected one of {list(sizes)}")
    for name in [model] if model else size or [SMALL]:
        if model:
            loaded, processor = load_checkpoint(model, device, dtype)
        else:
            processor = build_processor(family=family)  # type: ignore[arg-type]  # one of the families
            loaded = random_model(config_of(family, sizes[name], processor.tokenizer), device, dtype)
        processor.image_processor.size = unlimited(processor.image_processor.patch_size)
        for kind in images or ["1080p"]:
            for count in batch or [1]:
                file = io.BytesIO()
                photo(*IMAGES[kind], image).save(file, format="JPEG", quality=92)
                case = {
                    "family": loaded.config.model_type,
                    "model": name,
                    "image": kind,
                    "prompts": count,
                    "images": count * per_prompt,
                }
                found = measure(loaded, processor, file, per_prompt, count, settings, repeats)
                rows += [{**case, **row} for row in found]
        del loaded

    def plot(axes: Any) -> None:
        chosen = [row for row in rows if row["prompts"] == rows[0]["prompts"] and row["image"] == rows[0]["image"]]
        labels = [f"{row['model']}\n{row['method']}" for row in chosen]
        bottom = [0.0] * len(chosen)
        for stage in STAGES:
            height = [row[stage] for row in chosen]
            axes.bar(labels, height, bottom=bottom, label=stage)
            bottom = [below + above for below, above in zip(bottom, height, strict=True)]
        axes.set(ylabel="milliseconds to the first token", title=f"{rows[0]['image']}, {rows[0]['prompts']} prompt(s)")
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
) -> list[dict[str, Any]]:
    """One row per setting: patches, tokens, milliseconds per stage and in all, speed-up, peak memory."""
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

    def first_token(inputs: Any) -> float:
        """Milliseconds that the tower took of it."""
        with stopwatch(model.model.visual) as spent:
            model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)
        return sum(spent)

    prepared = {name: preprocess(setting) for name, setting in settings.items()}
    moved = {name: inputs.to(model.device) for name, inputs in prepared.items()}
    work = {
        "decode": lambda name: decode(),
        "preprocess": lambda name: preprocess(settings[name]),
        "transfer": lambda name: {key: value.to(model.device) for key, value in prepared[name].items()},
        "generate": lambda name: tower[name].append(first_token(moved[name])),
    }
    tower: dict[str, list[float]] = {name: [] for name in settings}
    with torch.inference_mode():
        times = {
            stage: take_turns({name: lambda n=name, s=stage: work[s](n) for name in settings}, repeats, 1, stage)
            for stage in work
        }
    rows = []
    for name in settings:
        stats = patch_stats(prepared[name])
        stages = {stage: times[stage][name] for stage in STAGES[:-2]}
        stages["tower"] = statistics.median(tower[name][1:])
        # generate encodes the images too: what is left is the language model's prefill and the first step
        stages["first token"] = times["generate"][name] - stages["tower"]
        total = sum(stages.values())
        rows.append(
            {
                "method": name,
                "patches": sum(one["vision_patches"] for one in stats),
                "image tokens": sum(one["language_tokens"] for one in stats),
                **stages,
                "total ms": total,
                "speed-up": rows[0]["total ms"] / total if rows else 1.0,
                "peak GiB": peak_memory(lambda n=name: first_token(moved[n])) if model.device.type == "cuda" else None,
            }
        )
    return rows


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


def peak_memory(work: Any) -> float:
    """Peak GPU memory of `work`, weights included, in GiB."""
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        work()
    return torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    typer.run(main)
