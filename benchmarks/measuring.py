"""What the speed benchmarks share: pictures, fair timing, and a report of JSON, table and plot.

Every case is timed next to upstream's in the same run: after a warm-up, the cases take turns, so that whatever else
the machine does hits all of them alike. Medians are reported, and the ratio to upstream's median.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from tqdm import tqdm

import transformers_apt
from transformers_apt.models.settings import DEFAULTS, RECOMMENDED

METHODS: dict[str, dict[str, Any]] = {
    "upstream": {"patch_selection_method": "off"},
    "recommended": dict(RECOMMENDED),
    "v1": {"patch_selection_method": "v1"},
    "budget 0.3": {"patch_selection_method": "budget", "alpha": 0.3},
    "budget 1.0": {"patch_selection_method": "budget", "alpha": 1.0},
    "budget 0.3 upsample_mse": {
        "patch_selection_method": "budget",
        "alpha": 0.3,
        "importance_method": "upsample_mse",
    },
    "joint 0.3 upsample_mse": {
        "patch_selection_method": "joint",
        "alpha": 0.3,
        "importance_method": "upsample_mse",
    },
}
"""Settings by the name they have in tables; the first is what the others are compared with."""

UPSTREAM = "upstream"


def budgets(alphas: Sequence[float], importance_method: str) -> dict[str, dict[str, Any]]:
    """Upstream and one `budget` setting per alpha, by the name they have in tables."""
    settings: dict[str, dict[str, Any]] = {UPSTREAM: METHODS[UPSTREAM]}
    for alpha in alphas:
        settings[f"budget {alpha:g}"] = {
            "patch_selection_method": "budget",
            "alpha": alpha,
            "importance_method": importance_method,
        }
    return settings


def named_settings(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Upstream, and settings given as JSON, by the name they have in tables.

    Raises:
        ValueError: text that is no JSON object, or names a setting that there is not.
    """
    settings: dict[str, dict[str, Any]] = {UPSTREAM: METHODS[UPSTREAM]}
    for text in given:
        try:
            setting = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--setting {text}: not JSON ({error})") from error
        unknown = set(setting) - set(DEFAULTS) if isinstance(setting, dict) else {text}
        if unknown:
            raise ValueError(f"--setting {text}: expected an object with some of {list(DEFAULTS)}, not {unknown}")
        settings[name_of(setting)] = setting
    return settings


def check_names(option: str, given: Iterable[str] | None, known: Iterable[str]) -> None:
    """Refuse what an option names, where there is no such thing.

    Raises:
        ValueError: so it is.
    """
    known = list(known)
    for name in given or ():
        if name not in known:
            raise ValueError(f"{option} {name}: expected one of {known}")


def name_of(setting: Mapping[str, Any]) -> str:
    """`{"patch_selection_method": "v1", "thresholds": [16, 16]}` -> `"v1 thresholds [16, 16]"`."""
    plain = ("patch_selection_method", "alpha", "importance_method")
    words = [f"{setting[name]}" for name in plain if name in setting]
    return " ".join(words + [f"{name} {value}" for name, value in setting.items() if name not in plain])


def unlimited(patch_size: int = 14) -> dict[str, int]:
    """An image processor's `size` that leaves large images large: up to Qwen2-VL's documented 16,384 tokens."""
    cell = (2 * patch_size) ** 2
    return {"shortest_edge": 4 * cell, "longest_edge": 16384 * cell}


def photo(width: int, height: int, path: Path | None = None) -> Image.Image:
    """A real photograph, resized: `path`, or scikit-learn's Summer Palace (640×427 px: large sizes are enlarged)."""
    if path is not None:
        return Image.open(path).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")).resize((width, height), Image.Resampling.LANCZOS)


def document(width: int, height: int) -> Image.Image:
    """A page in two columns: a title, paragraphs of small type, a table with rules, and empty margins."""
    chance = random.Random(0)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    margin, gap = width // 14, width // 30
    column = (width - 2 * margin - gap) // 2
    small, large = (ImageFont.load_default(size) for size in (17, 40))
    draw.text((margin, margin // 2), "Quarterly report on the condition of bridges", "black", large)

    def paragraph(x: int, y: int, lines: int) -> int:
        for _ in range(lines):
            line = ""
            while draw.textlength(line, small) < column - 60:
                line += "".join(chance.choices("aeinorstlcdum", k=chance.randint(2, 9))) + " "
            draw.text((x, y), line, (20, 20, 20), small)
            y += 25
        return y + 30

    for x in (margin, margin + column + gap):
        y = margin + 60
        while y + 7 * 25 < height - margin:
            y = paragraph(x, y, chance.randint(4, 7))
            if chance.random() < 0.4 and y + 6 * 34 < height - margin:
                for _ in range(5):
                    draw.line((x, y, x + column, y), (120, 120, 120))
                    for cell in range(4):
                        draw.text((x + cell * column // 4 + 8, y + 8), str(chance.randint(10, 9999)), "black", small)
                    y += 34
                y += 40
    return page


def take_turns(
    cases: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 2, label: str = ""
) -> dict[str, float]:
    """Median milliseconds of each case, over `repeats` rounds in which every case runs once."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    gc.freeze()  # going through all of transformers' objects takes longer than many a case
    try:
        for round_ in tqdm(range(warmup + repeats), desc=label, leave=False):
            for name, work in cases.items():
                gc.collect()
                synchronise()
                start = time.perf_counter()
                work()
                synchronise()
                if round_ >= warmup:
                    times[name].append((time.perf_counter() - start) * 1e3)
    finally:
        gc.unfreeze()
    return {name: statistics.median(found) for name, found in times.items()}


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "python": platform.python_version(),
        "transformers-apt": transformers_apt.__version__,
        **{name: _version(name) for name in ("torch", "torchvision", "transformers", "numpy", "numba")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def report(
    folder: Path, name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], plot: Callable[[Any], None]
) -> None:
    """Write `<name>.json` and `<name>.png` under their final names in one step each, and print the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    _replace(
        folder / f"{name}.json", lambda path: path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    )
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    plot(axes)
    _replace(folder / f"{name}.png", lambda path: figure.savefig(path, format="png", dpi=120))
    pyplot.close(figure)

    console = Console()
    where = about["hardware"]["gpu"] or about["hardware"]["cpu"]
    # a terminal is narrow: what is the same in every row is said once
    same = [key for key in rows[0] if len(rows) > 1 and all(row[key] == rows[0][key] for row in rows)]
    lines = [[key for key in rows[0] if key not in same]]
    lines += [[_shown(row[key]) for key in lines[0]] for row in rows]
    said = [f"{key}: {_shown(rows[0][key])}" for key in same if rows[0][key] is not None]
    table = _table(lines)
    wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
    if wanted > console.width:  # still too wide: every row becomes a column
        table = _table(list(zip(*lines, strict=True)))
    table.title, table.caption = f"{name}: {where}", ", ".join(said)
    console.print(table)
    console.print(f"written: {folder / name}.json, .png")


def _table(lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(lines[0]):
        table.add_column(name, overflow="fold", no_wrap=i == 0)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    unfinished = path.with_suffix(f"{path.suffix}.part")
    write(unfinished)
    unfinished.replace(path)
