"""The main job on one real image: every method's tokens, time and answer, next to upstream's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from transformers_apt.stats import patch_stats

SETTINGS: tuple[dict[str, Any], ...] = (
    {"patch_selection_method": "off"},
    {"patch_selection_method": "v1"},
    {"patch_selection_method": "v2", "alpha": 0.5},
    {"patch_selection_method": "v2", "alpha": 1.0},
    {"patch_selection_method": "budget", "alpha": 0.7},
    {"patch_selection_method": "budget", "alpha": 0.5},
    {"patch_selection_method": "budget", "alpha": 0.3},
    {"patch_selection_method": "budget", "alpha": 0.2},
    {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"},
)
"""What the table compares; the first is upstream."""

STAGES = ("preprocessing", "tower", "generate", "total")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        settings: the `images_kwargs`.
        stats: `patch_stats` of the image.
        milliseconds: median time per stage; `total` is preprocessing and generate (which contains the tower).
        answer: the generated text.
    """

    settings: dict[str, Any]
    stats: dict[str, Any]
    milliseconds: dict[str, float]
    answer: str


def load_photo(path: Path | None) -> Image.Image:
    """The image to look at; without a path, scikit-image's photograph of the astronaut Eileen Collins (NASA).

    Raises:
        ValueError: not a readable image. ModuleNotFoundError: no path, and scikit-image is not installed.
    """
    if path is not None:
        from transformers.image_utils import load_image

        try:
            return load_image(Image.open(path)).convert("RGB")  # turns a phone's photo upright, as upstream does
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read as an image ({error}); expected a JPEG, PNG or the like"
            ) from error
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "no --image was given and the bundled photo needs scikit-image: pip install 'transformers-apt[demo]', or "
            "pass --image FILE"
        ) from error
    return Image.fromarray(data.astronaut())


def load_checkpoint(name: str | None, device: str, dtype: str) -> tuple[Any, Any]:
    """`(model, processor)` of a folder or hub id; without a name, of a small random checkpoint saved to disk first.

    Raises:
        ValueError: a path where nothing is. OSError: not a checkpoint, or not to be had from the hub.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLProcessor
    from transformers.utils.logging import disable_progress_bar

    if name is None:
        disable_progress_bar()  # a second's work
        from transformers_apt.tiny_checkpoint import save_checkpoint

        with tempfile.TemporaryDirectory(prefix="transformers-apt-") as folder:
            save_checkpoint(folder, size="demo")
            return load_checkpoint(folder, device, dtype)
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ValueError(
            f"{name} is not a folder; expected a checkpoint folder or a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )
    processor = AutoProcessor.from_pretrained(name)
    if not isinstance(processor, Qwen2VLProcessor):
        raise ValueError(f"{name} is for {type(processor).__name__}; adaptive patches need a Qwen2-VL checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=getattr(torch, dtype))
    return model.to(device).eval(), processor


def measure(
    model: Any, processor: Any, image: Image.Image, prompt: str, *, max_new_tokens: int, repeats: int
) -> list[Row]:
    """Run every setting: a warm-up, then `repeats` timed runs of each stage, interleaved so that noise hits all."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    def preprocess(settings: dict[str, Any]) -> Any:
        inputs = processor(images=image, text=text, images_kwargs=settings, return_tensors="pt")
        return inputs.to(model.device)

    def tower(inputs: Any) -> Any:
        names = ("pixel_values", "image_grid_thw", "image_patch_layout")
        return model.model.get_image_features(**{name: inputs[name] for name in names if name in inputs})

    def generate(inputs: Any) -> Any:
        # a fixed number of tokens, so that the times compare
        return model.generate(**inputs, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False)

    prepared = [preprocess(settings) for settings in SETTINGS]
    generated = [generate(inputs) for inputs in prepared]
    times: list[dict[str, list[float]]] = [{stage: [] for stage in STAGES[:-1]} for _ in SETTINGS]
    with torch.inference_mode():
        for _ in range(repeats):
            for settings, inputs, found in zip(SETTINGS, prepared, times, strict=True):
                found["preprocessing"].append(_milliseconds(partial(preprocess, settings)))
                found["tower"].append(_milliseconds(partial(tower, inputs)))
                found["generate"].append(_milliseconds(partial(generate, inputs)))
    rows = []
    for settings, inputs, found, output in zip(SETTINGS, prepared, times, generated, strict=True):
        medians = {stage: statistics.median(values) for stage, values in found.items()}
        medians["total"] = medians["preprocessing"] + medians["generate"]
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        stats = patch_stats(inputs, processor.image_processor.patch_size)[0]
        rows.append(Row(settings, stats, medians, answer))
    return rows


def _milliseconds(work: Callable[[], Any]) -> float:
    _wait_for_device()
    start = time.perf_counter()
    work()
    _wait_for_device()
    return (time.perf_counter() - start) * 1e3


def _wait_for_device() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def show(console: Console, rows: list[Row]) -> None:
    """Print the tokens, the times with their ratio to the first row's (upstream), and what each setting answered."""
    tokens = Table(
        "method",
        title="tokens in the vision tower (patches) and in the language model",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for header in ("14 px", "28 px", "56 px", "patches", "kept", "language"):
        tokens.add_column(header, justify="right", no_wrap=True)
    times = Table("method", title="milliseconds, median (× upstream's)", title_justify="left", box=SIMPLE_HEAD)
    for stage in STAGES:
        times.add_column(stage, justify="right", no_wrap=True)
    upstream = rows[0].milliseconds
    for row in rows:
        sides = [str(row.stats["patches_by_px"].get(side, 0)) for side in (14, 28, 56)]
        counts = (str(row.stats["vision_patches"]), f"{row.stats['retention']:.0%}", str(row.stats["language_tokens"]))
        tokens.add_row(label(row.settings), *sides, *counts)
        times.add_row(
            label(row.settings), *(f"{ms:.0f} ({ms / upstream[s]:.2f})" for s, ms in row.milliseconds.items())
        )
    console.print(tokens, times)
    for row in rows:
        console.print(f"[bold]{label(row.settings)}[/bold]: {row.answer!r}", highlight=False, soft_wrap=True)


def label(settings: dict[str, Any]) -> str:
    """`budget 0.3 upsample_mse` for people."""
    method = settings["patch_selection_method"]
    words = ["off (upstream)" if method == "off" else method]
    words += [f"{settings['alpha']:g}"] if "alpha" in settings else []
    words += [settings["importance_method"]] if "importance_method" in settings else []
    return " ".join(words)
