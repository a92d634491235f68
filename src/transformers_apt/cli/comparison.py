"""The main job on one real image: every method's tokens, time and answer, next to upstream's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transformers_apt.embedded import Example
from transformers_apt.embedded.asking import answer, decode_answer, preprocess_for
from transformers_apt.models.image_files import load_photo
from transformers_apt.models.layouts import KEYS
from transformers_apt.models.settings import FIT, RECOMMENDED
from transformers_apt.models.stats import patch_stats

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
    {"patch_selection_method": "joint", "alpha": 0.3, "importance_method": "upsample_mse"},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse"},
    dict(RECOMMENDED),
    {"patch_selection_method": FIT, "alpha": 0.45},
)
"""What the table compares; the first is upstream."""

EXAMPLE_SETTINGS = (SETTINGS[0], SETTINGS[1], SETTINGS[8], dict(RECOMMENDED))
"""What the other examples are asked under: upstream, Qwen2-VL's default, `budget` with a better map, and what is
recommended."""

STAGES = ("preprocessing", "tower", "generate", "total")
HEADERS = {"preprocessing": "preprocess"}
Step = Callable[[str], None]
"""Takes what is done next, for whoever waits."""


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


def measure(
    model: Any,
    processor: Any,
    image: Image.Image,
    prompt: str,
    *,
    ask: bool = True,
    max_new_tokens: int,
    repeats: int,
    step: Step = lambda what: None,
) -> list[Row]:
    """Run every setting: a warm-up, then `repeats` timed runs of each stage, interleaved so that noise hits all.

    Without `ask` nothing is answered: the times are those of a prompt as long. `step` is told of each of
    `steps(repeats)` pieces of work before it begins.
    """
    preprocess = partial(preprocess_for, model, processor, image, prompt)

    def tower(inputs: Any) -> Any:
        names = ("pixel_values", "image_grid_thw", *KEYS)
        return model.model.get_image_features(**{name: inputs[name] for name in names if name in inputs})

    def generate(inputs: Any) -> Any:
        # the same number of tokens whatever the answer, so that the times compare
        return model.generate(**inputs, max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False)

    prepared, answers = [], []
    for settings in SETTINGS:
        step(f"{'answering' if ask else 'tiling'} under {label(settings)}")
        prepared.append(preprocess(settings))
        answers.append(decode_answer(model, processor, prepared[-1], max_new_tokens) if ask else "")
    for settings, inputs in zip(SETTINGS, prepared, strict=True):
        step(f"warming up {label(settings)}")
        generate(inputs)
    times: list[dict[str, list[float]]] = [{stage: [] for stage in STAGES[:-1]} for _ in SETTINGS]
    with torch.inference_mode():
        for _ in range(repeats):
            for settings, inputs, found in zip(SETTINGS, prepared, times, strict=True):
                step(f"timing {label(settings)}")
                found["preprocessing"].append(_milliseconds(partial(preprocess, settings)))
                found["tower"].append(_milliseconds(partial(tower, inputs)))
                found["generate"].append(_milliseconds(partial(generate, inputs)))
    rows = []
    for settings, inputs, found, said in zip(SETTINGS, prepared, times, answers, strict=True):
        medians = {stage: statistics.median(values) for stage, values in found.items()}
        medians["total"] = medians["preprocessing"] + medians["generate"]
        stats = patch_stats(inputs, processor.image_processor.patch_size)[0]
        rows.append(Row(settings, stats, medians, said))
    return rows


def steps(repeats: int) -> int:
    """How many pieces of work `measure` tells of."""
    return len(SETTINGS) * (2 + repeats)


def _milliseconds(work: Callable[[], Any]) -> float:
    _wait_for_device()
    start = time.perf_counter()
    work()
    _wait_for_device()
    return (time.perf_counter() - start) * 1e3


def _wait_for_device() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def show(console: Console, rows: list[Row], who: str | None = None, expected: str | None = None) -> None:
    """Print the tokens, the times with their ratio to the first row's (upstream), and what each setting answered.

    Args:
        console: 80 columns are enough.
        rows: what `measure` returned.
        who: the model that answered, in words; `None` shows no answers.
        expected: the right answer, where it is known: all are then marked.
    """
    tokens = _table("vision patches, and tokens of the language model")
    patch_size = min(rows[0].stats["patches_by_px"])  # upstream has no other
    sides = [patch_size * size for size in (1, 2, 4)]
    for header in (*(f"{side} px" for side in sides), "patches", "kept", "tokens", "left out"):
        tokens.add_column(header, justify="right", no_wrap=True)
    times = _table("milliseconds, median (× upstream's)")
    for stage in STAGES:
        times.add_column(HEADERS.get(stage, stage), justify="right", no_wrap=True)
    answers = Table("method", "answer", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    upstream = rows[0].milliseconds
    for row in rows:
        by_px = (str(row.stats["patches_by_px"].get(side, 0)) for side in sides)
        stats = row.stats
        counts = (
            stats["vision_patches"],
            f"{stats['vision_patches'] / rows[0].stats['vision_patches']:.0%}",  # `fit` has another grid
            stats["language_tokens"],
            stats["dropped_cells"],
        )
        name = short_label(row.settings)
        tokens.add_row(name, *by_px, *map(str, counts))
        times.add_row(name, *(f"{ms:.0f} ({ms / upstream[s]:.2f})" for s, ms in row.milliseconds.items()))
        answers.add_row(name, judged(row.answer, expected))
    console.print(tokens, times)
    if who:
        console.print(f"Answers of {escape(who)}", answers)
    console.print("mse: upsample_mse in place of entropy. drop: what repeats its neighbour is left out.\n")


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    return table


def answer_examples(model: Any, processor: Any, examples: Sequence[Example], step: Step) -> Table:
    """Each example's question, asked under `EXAMPLE_SETTINGS`, and the answers."""
    table = Table("question", "right", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for settings in EXAMPLE_SETTINGS:
        table.add_column(short_label(settings), no_wrap=True)
    for example in examples:
        step(f"asking about {example.image.stem}")
        image = load_photo(example.image)
        answers = (answer(model, processor, image, example.question, settings) for settings in EXAMPLE_SETTINGS)
        table.add_row(
            example.question,
            example.answer,
            *(judged(found, example.answer) for found in answers),
        )
    return table


def judged(answer: str, expected: str | None) -> str:
    """An answer for a table: green if it is the expected one, red if not, as it is if none is expected."""
    text = escape(answer if answer.isprintable() else repr(answer))
    if expected is None:
        return text
    return f"[green]{text} ✓[/green]" if answer.strip() == expected else f"[red]{text} ✗[/red]"


def short_label(settings: dict[str, Any]) -> str:
    """The same for a column of a table: `budget 0.3 mse`."""
    return label(settings).replace("upsample_", "").replace("off (upstream)", "off")


def label(settings: dict[str, Any]) -> str:
    """`budget 0.3 upsample_mse` for people."""
    method = settings["patch_selection_method"]
    words = ["off (upstream)" if method == "off" else method]
    words += [f"{settings['alpha']:g}"] if "alpha" in settings else []
    words += [settings["importance_method"]] if "importance_method" in settings else []
    words += [str(settings["thresholds"])] if "thresholds" in settings else []
    words += [f"drop {settings['drop_tolerance']:g}"] if "drop_tolerance" in settings else []
    words += [f"predict {settings['predict_tolerance']:g}"] if "predict_tolerance" in settings else []
    return " ".join(words)
