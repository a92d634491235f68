"""What each setting keeps of the bundled photos at native size: `python -m benchmarks.retention`.

Counts, not times: the same on every machine.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data
from sklearn.datasets import load_sample_image
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import hardware, report
from transformers_apt import patch_stats
from transformers_apt.models.settings import RECOMMENDED
from transformers_apt.visualizer.view import load_processor

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "moon", "page", "text")
SETTINGS: dict[str, dict[str, Any]] = {
    "v1": {"patch_selection_method": "v1"},
    "v1 upsample_mse, drop 2": dict(RECOMMENDED),
    "v1 laplacian": {"patch_selection_method": "v1", "importance_method": "laplacian"},
    "v2 0.5": {"patch_selection_method": "v2", "alpha": 0.5},
    "v2 1.0": {"patch_selection_method": "v2", "alpha": 1.0},
    "budget 0.3": {"patch_selection_method": "budget", "alpha": 0.3},
    "budget 0.3 upsample_mse": {
        "patch_selection_method": "budget",
        "alpha": 0.3,
        "importance_method": "upsample_mse",
    },
    "joint 0.3 upsample_mse": {"patch_selection_method": "joint", "alpha": 0.3, "importance_method": "upsample_mse"},
}


def photos() -> dict[str, Image.Image]:
    """scikit-image's and scikit-learn's photographs, by name."""
    found = {name: np.asarray(getattr(data, name)()) for name in PHOTOS}
    found |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(pixels).convert("RGB") for name, pixels in found.items()}


def main(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id: use this checkpoint's image processor, of any of the families."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the figures as JSON and a plot; default: none.")
    ] = None,
) -> None:
    """Print, per photo and setting, the vision patches and the language tokens kept, in percent."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    try:
        processor = load_processor(model)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    table = Table("photo", *SETTINGS, title="kept: vision patches % / language tokens %")
    kept: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
    for photo, image in photos().items():
        cells = []
        for name, settings in SETTINGS.items():
            (stats,) = patch_stats(processor(image, return_tensors="pt", **settings))
            h, w = stats["grid"]
            share = (100 * stats["retention"], 100 * stats["language_tokens"] / (h * w // 4))
            kept[name].append(share)
            cells.append("{:.0f} / {:.0f}".format(*share))
        table.add_row(photo, *cells)
    medians = [[statistics.median(column) for column in zip(*kept[name], strict=True)] for name in SETTINGS]
    table.add_section()
    table.add_row("median", *("{:.0f} / {:.0f}".format(*pair) for pair in medians))
    Console(width=150).print(table)
    if output is None:
        return
    rows = [
        {"method": name, "patches %": pair[0], "tokens %": pair[1]}
        for name, pair in zip(SETTINGS, medians, strict=True)
    ]

    def plot(axes: Any) -> None:
        axes.barh([row["method"] for row in rows], [row["patches %"] for row in rows], label="median")
        for name in SETTINGS:
            axes.plot([share[0] for share in kept[name]], [name] * len(kept[name]), "k.", markersize=4)
        axes.set(xlabel="vision patches kept, % (a dot per photo)", xlim=(0, 102))
        axes.legend()

    report(output, "retention", rows, {"hardware": hardware(), "model": model, "kept_percent": kept}, plot)


if __name__ == "__main__":
    typer.run(main)
