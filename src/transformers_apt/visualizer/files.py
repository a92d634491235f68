"""The visualiser's files: a folder per image that is complete or not there, and the table of a folder of images."""

from __future__ import annotations

import csv
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from apt_code.entropy_utils import IMPORTANCE_METHODS
from apt_code.visualization import (
    EVERYWHERE,
    add_legend,
    draw_heatmap,
    draw_tiling,
    highest_importance,
    import_matplotlib,
    reconstruct,
    to_picture,
)
from transformers_apt.models.image_files import image_files
from transformers_apt.visualizer.names import folder_name, folder_names, longest_name, readable
from transformers_apt.visualizer.sheet import overview
from transformers_apt.visualizer.view import UnusableImageError, View, examine, load_picture, stats_of

HEATMAPS = "01_heatmaps"
GRID = "02_patches_grid"
ORIGINAL = "03_original_resized"
STATS = "stats.json"
SHEET = "overview.jpg"
SUMMARY = "summary.csv"
SUMMARY_COLUMNS = (
    "image", "folder", "error", "original_width", "original_height", "resized_width", "resized_height", "grid_h",
    "grid_w", "patches_fine", "patches_middle", "patches_coarse", "patches", "patches_full", "retention",
    "retention_target", "language_tokens", "language_tokens_full", "dropped",
)  # fmt: skip
JPEG: dict[str, Any] = {"quality": 92, "subsampling": 0}
"""Without subsampling: thin coloured lines on grey keep their colour."""


class TableError(OSError):
    """The table of a folder of images cannot be written; the images were drawn all the same.

    Args:
        message: why, and what to do.
        found, errors: what `visualize_folder` would have returned.
    """

    def __init__(self, message: str, found: list[dict[str, Any]], errors: list[str]) -> None:
        super().__init__(message)
        self.found = found
        self.errors = errors


def visualize_image(
    path: Path,
    output: Path,
    processor: Qwen2VLImageProcessor,
    device: str = "cpu",
    *,
    name: str | None = None,
    notes: Sequence[str] = (),
    limit: str | None = None,
) -> dict[str, Any]:
    """Write the pictures and `stats.json` of one image file to `<output>/<name>/`.

    Args:
        path: the image file.
        output: folder of the image's folder.
        processor: the image processor that decides everything.
        device: where to compute.
        name: of the image's folder; `None` for `folder_name(path)`, the file's name without its suffix.
        notes: to go in front of the view's own.
        limit: `describe_limit` of the processor.

    Returns:
        The statistics in `stats.json`.

    Raises:
        UnusableImageError: this image cannot be shown. OSError: the folder cannot be written.
        ModuleNotFoundError: no matplotlib.
    """
    import_matplotlib()
    picture = load_picture(path)
    try:
        view = examine(picture, processor, device)
    except torch.OutOfMemoryError as error:
        raise UnusableImageError(f"{path}: not enough memory on the GPU; use --device cpu") from error
    except ValueError as error:
        raise UnusableImageError(f"{path}: {error}") from error
    view.notes[:0] = notes
    stats = stats_of(view, readable(path.name), limit)
    output.mkdir(parents=True, exist_ok=True)
    if name is None:
        name = folder_name(path, longest=longest_name(output))
    with _whole_folder(output / name) as folder:
        _write(view, stats, folder)
    return stats


def visualize_folder(
    folder: Path,
    output: Path,
    processor: Qwen2VLImageProcessor,
    device: str = "cpu",
    *,
    notes: Sequence[str] = (),
    limit: str | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """`visualize_image` for every image file in a folder, and `<output>/summary.csv` with a line for each.

    A file that cannot be shown, or whose folder cannot be written, does not stop the others: its line in the table
    holds the error.

    Returns:
        `(statistics of the images that could be shown, errors of the others)`.

    Raises:
        ValueError: no image files. OSError: the output folder cannot be made, or holds another table.
        TableError: in the end, if only the table cannot be written. ModuleNotFoundError: no matplotlib.
    """
    from tqdm.auto import tqdm

    paths = sorted(image_files(folder, folder.iterdir()))
    import_matplotlib()
    output.mkdir(parents=True, exist_ok=True)
    table = output / SUMMARY
    _refuse_foreign_table(table)
    names = folder_names(paths, taken=(SUMMARY,), longest=longest_name(output))
    rows, found, errors = [], [], []
    for path, name in tqdm(list(zip(paths, names, strict=True)), unit="image", disable=None):
        try:
            stats = visualize_image(path, output, processor, device, name=name, notes=notes, limit=limit)
            row = _summary_row(stats, name)
        except Exception as error:  # whatever it is, there may be nothing wrong with the next one
            known = isinstance(error, UnusableImageError | FileExistsError)
            said = str(error) if known else f"{path} cannot be drawn ({type(error).__name__}: {error})"
            errors.append(said)
            rows.append({"image": readable(path.name), "error": readable(" ".join(said.split()))})
        else:
            found.append(stats)
            rows.append(row)
    try:
        _write_table(table, rows)
    except OSError as error:
        said = f"{table} cannot be written ({error}); make room for it, or choose another --output"
        raise TableError(said, found, errors) from error
    return found, errors


def _refuse_foreign_table(table: Path) -> None:
    """Raise `FileExistsError` where the table would replace anything but an earlier run's."""
    if not os.path.lexists(table):
        return
    columns = ""
    if table.is_file():
        columns = table.read_text(encoding="utf-8-sig", errors="replace").split("\n")[0].strip()
    if tuple(columns.split(",")) not in (SUMMARY_COLUMNS, SUMMARY_COLUMNS[:-1]):  # once there was no "dropped"
        raise FileExistsError(f"{table} was not written by this command; move it, or choose another --output")


def _write_table(table: Path, rows: list[dict[str, Any]]) -> None:
    partial = table.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, SUMMARY_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, table)
    finally:
        partial.unlink(missing_ok=True)


def drawing_scale(view: View) -> int:
    """How many times larger the tiling is drawn: small images need room inside the borders, large ones have it."""
    longest = max(view.resized.shape[-2:])
    return 4 if longest <= 700 else 2 if longest <= 1400 else 1


def _write(view: View, stats: dict[str, Any], folder: Path) -> None:
    for part in (HEATMAPS, GRID, ORIGINAL):
        (folder / part).mkdir()
    method = view.settings["importance_method"]
    unit = IMPORTANCE_METHODS[method].unit
    thresholds = view.settings["thresholds"] or {}
    highest = highest_importance(view.maps)
    for side, importance in view.maps.items():
        title = f"{method} of each {side} px cell"
        if side in thresholds:
            title += f"\nkept whole below {thresholds[side]:.4g} {unit} (mark on the scale)"
        elif not bool(importance.any()):
            title += f"\n{EVERYWHERE}"
        heatmap = draw_heatmap(
            importance, side, (view.resized.shape[-2], view.resized.shape[-1]),
            highest=highest, unit=unit, title=title, threshold=thresholds.get(side),
        )  # fmt: skip
        heatmap.save(folder / HEATMAPS / f"importance_map_scale_{side}.png")
    tiling = draw_tiling(view.resized, view.layout, view.patch_size, drawing_scale(view))
    legend = add_legend(tiling, view.layout, view.patch_size)
    legend.save(folder / GRID / "patches_visualization.jpg", **JPEG)
    seen: Image.Image = to_picture(reconstruct(view.resized, view.layout, view.patch_size, view.inherited))
    seen.save(folder / GRID / "reconstruction.jpg", **JPEG)
    overview(view, stats, tiling, seen).save(folder / SHEET, **JPEG)
    view.original.save(folder / ORIGINAL / "original_image.jpg", **JPEG)
    to_picture(view.resized).save(folder / ORIGINAL / "resized_image.jpg", **JPEG)
    text = json.dumps(stats, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / STATS).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends, and vanishes if the block fails."""
    _refuse_foreign(target)
    mark = uuid.uuid4().hex
    # without the name, beside which there might be no room for the mark
    partial, old = (target.with_name(f".{mark}.{word}") for word in ("partial", "old"))
    try:
        partial.mkdir()
        yield partial
        if target.exists():
            target.rename(old)
        partial.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    """Raise `FileExistsError` where replacing `target` would delete anything but an earlier run's files."""
    if not os.path.lexists(target):
        return
    ours = {f"{GRID}/patches_visualization.jpg", f"{GRID}/reconstruction.jpg", STATS, SHEET}
    ours |= {f"{ORIGINAL}/original_image.jpg", f"{ORIGINAL}/resized_image.jpg"}
    foreign = [target.name]
    if target.is_dir() and not target.is_symlink():
        files = [path.relative_to(target) for path in target.rglob("*") if path.is_symlink() or not path.is_dir()]
        foreign = [
            path.as_posix()
            for path in files
            if path.as_posix() not in ours
            and path.name not in (".DS_Store", "Thumbs.db", "desktop.ini")  # from looking at the folder
            and not (len(path.parts) == 2 and path.match(f"{HEATMAPS}/importance_map_scale_*.png"))
        ]
    if foreign:
        raise FileExistsError(
            f"{target} holds something that this command did not write ({foreign[0]}); "
            "move it, or choose another --output"
        )


def _summary_row(stats: dict[str, Any], folder: str) -> dict[str, Any]:
    fine, middle, coarse = stats["patches"]["by_px"].values()
    return {
        "image": stats["image"],
        "folder": folder,
        "error": "",
        "original_width": stats["original_size"]["width"],
        "original_height": stats["original_size"]["height"],
        "resized_width": stats["resized_size"]["width"],
        "resized_height": stats["resized_size"]["height"],
        "grid_h": stats["grid"]["h"],
        "grid_w": stats["grid"]["w"],
        "patches_fine": fine,
        "patches_middle": middle,
        "patches_coarse": coarse,
        "patches": stats["patches"]["kept"],
        "patches_full": stats["patches"]["full"],
        "retention": round(stats["retention"]["actual"], 6),
        "retention_target": stats["retention"]["target"],
        "language_tokens": stats["language_tokens"]["kept"],
        "language_tokens_full": stats["language_tokens"]["full"],
        "dropped": stats["dropped_cells"],
    }
