"""The image processor on a GPU, and how often the host waits for it: `python -m benchmarks.gpu_preprocessing`.

From PIL images to `pixel_values` on the device, next to upstream's. A host that waits (a copy from ordinary memory, a
number read back) leaves the GPU idle, so the waits are counted: for one image, and for each further one of a call.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers.utils import logging

import transformers_apt
from benchmarks.measuring import (
    METHODS,
    UPSTREAM,
    check_names,
    document,
    hardware,
    named_settings,
    photo,
    report,
    take_turns,
    unlimited,
)
from transformers_apt.visualizer.view import load_processor

SIZES = {"512": (512, 512), "1080p": (1920, 1080), "4 MP": (2632, 1456)}
BATCH = 4
WAIT = "synchronizing CUDA operation"
"""What torch's warnings of a wait have in common."""


def waits(work: Callable[[], Any]) -> Counter[str]:
    """How often the host waits for the GPU in `work`, by the line of Python that made it."""
    on_gpu = torch.cuda.is_available()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
        for warning in found
        if WAIT in str(warning.message)
    )


def top_operations(work: Callable[[], Any], device: str) -> str:
    """A table of what takes longest in `work`, on the device where there is one."""
    with torch.profiler.profile() as profiler:
        work()
        if device != "cpu":
            torch.cuda.synchronize()
    by = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=60)


def main(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id: use this checkpoint's image processor, of any of the families."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A photo of your own instead of the bundled one.")] = None,
    sizes: Annotated[list[str] | None, typer.Option(help=f"Of {list(SIZES)}, repeatable.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="Settings as JSON, repeatable.", show_default="some usual ones"),
    ] = None,
    device: Annotated[str, typer.Option(help="'cuda', or 'cpu' to try the command.")] = "cuda",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    profile: Annotated[
        bool, typer.Option(help="Also print what takes longest in a call, by torch's profiler.")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure preprocessing on a GPU and write `gpu_preprocessing.json`, a table and a plot."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    try:
        check_names("--sizes", sizes, SIZES)
        settings = named_settings(setting) if setting else METHODS
        processor = load_processor(model)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    processor.size = unlimited(processor.patch_size)
    rows: list[dict[str, Any]] = []
    places: dict[str, dict[str, int]] = {}
    for size in sizes or list(SIZES):
        for kind, picture in (("photo", photo(*SIZES[size], image)), ("document", document(*SIZES[size]))):
            calls = {
                (name, count): lambda s=values, c=count, i=picture: processor(
                    [i] * c, return_tensors="pt", device=device, **s
                )
                for name, values in settings.items()
                for count in (1, BATCH)
            }
            medians = {
                count: take_turns(
                    {name: calls[name, count] for name in settings}, repeats, label=f"{kind} {size} × {count}"
                )
                for count in (1, BATCH)
            }
            for name in settings if profile else ():
                print(f"{kind} {size} × {BATCH}, {name}\n{top_operations(calls[name, BATCH], device)}")
            counts = {call: waits(work) for call, work in calls.items()}
            for name in settings:
                first, more = counts[name, 1], counts[name, BATCH]
                places[f"{kind} {size}, {name}"] = dict(first.most_common())
                rows.append(
                    {
                        "image": size,
                        "kind": kind,
                        "method": name,
                        "patches": len(calls[name, 1]()["pixel_values"]),
                        "ms": medians[1][name],
                        "ratio": medians[1][name] / medians[1][UPSTREAM],
                        f"ms × {BATCH}": medians[BATCH][name],
                        f"ratio × {BATCH}": medians[BATCH][name] / medians[BATCH][UPSTREAM],
                        "waits": first.total(),
                        "a further image": (more.total() - first.total()) / (BATCH - 1),
                    }
                )

    def plot(axes: Any) -> None:
        chosen = [row for row in rows if row["image"] == rows[0]["image"]]
        axes.barh([f"{row['kind']}, {row['method']}" for row in chosen], [row["ms"] for row in chosen])
        axes.set(xlabel="milliseconds", title=f"image processor on {device}, {rows[0]['image']}")

    about = {
        "hardware": hardware(device),
        "device": device,
        "model": model,
        "repeats": repeats,
        "waits_by_line": places,
    }
    report(output, "gpu_preprocessing", rows, about, plot)


if __name__ == "__main__":
    typer.run(main)
