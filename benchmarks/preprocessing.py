"""What choosing and packing patches costs, next to upstream's preprocessing: `python -m benchmarks.preprocessing`.

Times the whole image processor (from a PIL image to `pixel_values`), on both backends, and the importance maps alone
against the usual one-hot histogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil
from transformers.utils import logging

import transformers_apt
from apt_code import PatchTokenizer
from apt_code.entropy_utils import IMPORTANCE_METHODS, compute_patch_entropy_batched
from apt_code.patch_packing import Affine, RowPacker
from apt_code.patch_selection import lay_out, plan_of_maps, rule_budget
from benchmarks.measuring import METHODS, UPSTREAM, check_names, hardware, photo, report, take_turns, unlimited
from benchmarks.memory import grown
from transformers_apt.visualizer.view import load_processor

SIZES = {f"{w}x{h}": (w, h) for w, h in ((336, 280), (512, 512), (1024, 1024), (1920, 1080), (4000, 3000))}
BACKENDS = {"torchvision": Qwen2VLImageProcessor, "pil": Qwen2VLImageProcessorPil}


def one_hot_entropy(images: torch.Tensor, side: int, bins: int = 512) -> torch.Tensor:
    """The usual way: a one-hot vector per pixel, averaged over each cell. `(1, 3, H, W)` -> `(rows, cols)`."""
    grey = images[0, 0] * 0.2989 + images[0, 1] * 0.5870 + images[0, 2] * 0.1140
    rows, cols = grey.shape[0] // side, grey.shape[1] // side
    index = (grey[: rows * side, : cols * side] * bins / 255).long().clamp(0, bins - 1)
    cells = index.view(rows, side, cols, side).permute(0, 2, 1, 3).reshape(rows, cols, -1)
    chance = torch.nn.functional.one_hot(cells, bins).float().mean(2)
    return -(chance * torch.log2(chance + 1e-10)).sum(-1)


def whole_processor(image: Path | None, repeats: int, sizes: Sequence[str], model: str | None) -> list[dict[str, Any]]:
    """One row per backend, size and method."""
    rows = []
    for backend, kind in BACKENDS.items():
        for limit in ("default", "16384 tokens"):  # a default of upstream's own stops at 1 MP
            processor = kind() if model is None else kind.from_pretrained(model)
            if limit != "default":
                processor.size = unlimited(processor.patch_size)
            for width, height in (SIZES[name] for name in sizes):
                if limit != "default" and megapixels(f"{width}×{height}") < 1.1:
                    continue  # the same as with the default limit
                picture = photo(width, height, image)
                cases = {
                    name: lambda s=settings, p=processor, i=picture: p(i, return_tensors="pt", **s)
                    for name, settings in METHODS.items()
                }
                medians = take_turns(cases, repeats, label=f"{backend} {width}×{height}")
                for name, settings in METHODS.items():
                    rows.append(
                        {
                            "backend": backend,
                            "image": f"{width}×{height}",
                            "limit": limit,
                            "method": name,
                            "patches": len(processor(picture, return_tensors="pt", **settings)["pixel_values"]),
                            "ms": medians[name],
                            "ratio": medians[name] / medians[UPSTREAM],
                        }
                    )
    return rows


def pixels_of(image: Path | None, width: int, height: int, patch_size: int) -> torch.Tensor:
    """A photo `(1, 3, H, W)` of about this size, of whole merge cells."""
    cell = 2 * patch_size
    width, height = (round(side / cell) * cell for side in (width, height))
    pixels = torch.frombuffer(bytearray(photo(width, height, image).tobytes()), dtype=torch.uint8)
    return pixels.view(1, height, width, 3).permute(0, 3, 1, 2).contiguous()


def maps_alone(image: Path | None, repeats: int, patch_size: int) -> dict[str, float]:
    """Milliseconds of each importance map and of the one-hot histogram, one thread at 1 MP."""
    images = pixels_of(image, 1316, 728, patch_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = {
            name: lambda m=method: m.compute(images, patch_size=patch_size, num_scales=3)
            for name, method in IMPORTANCE_METHODS.items()
        }
        found = take_turns(cases, repeats, label="importance maps")
        sides = [patch_size * size for size in (1, 2, 4)]
        one_hot = {"one-hot entropy": lambda: [one_hot_entropy(images, side) for side in sides]}
        found |= take_turns(one_hot, repeats=1, warmup=0, label="one-hot")
    finally:
        torch.set_num_threads(threads)
    return found


def entropy_bytes_per_pixel(image: Path | None, patch_size: int) -> float | None:
    """Peak memory of the entropy beyond what the process held, which includes what is free inside it."""
    images = pixels_of(image, 3920, 2912, patch_size)
    compute_patch_entropy_batched(images[..., : 4 * patch_size, : 4 * patch_size], patch_size, 3)  # compiled, loaded
    try:
        return grown(lambda: compute_patch_entropy_batched(images, patch_size, 3)) / images[0, 0].numel()
    except OSError:  # not Linux
        return None


def steps_alone(image: Path | None, repeats: int, patch_size: int) -> dict[str, float]:
    """Milliseconds of what follows the importance map, one thread, at 1 MP (4,888 base patches of 14 px)."""
    images = pixels_of(image, 1316, 728, patch_size)
    tokenizer = PatchTokenizer(base_patch_size=patch_size, patch_selection_method="budget", alpha=0.3)
    maps = tokenizer.compute_importance_maps(images)
    plan = plan_of_maps(maps, 0.3)
    keep = rule_budget(maps, plan, coarse_scores=False)
    layouts = lay_out(maps, keep)
    affine = Affine((122.8, 116.7, 104.1), (68.5, 66.6, 70.3))
    packer = RowPacker(patch_size, 2, affine.of, affine)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return take_turns(
            {
                "selection": lambda: rule_budget(maps, plan, coarse_scores=False),
                "layout": lambda: lay_out(maps, keep),
                "packing": lambda: packer(images, layouts),
            },
            repeats,
            label="steps",
        )
    finally:
        torch.set_num_threads(threads)


def growth(rows: list[dict[str, Any]], backend: str) -> dict[str, float]:
    """Per method, the exponent of time in pixels, over images that no limit shrinks: 1 is linear."""
    found = {}
    for name in METHODS:
        chosen = [row for row in rows if (row["backend"], row["method"]) == (backend, name)]
        chosen = [row for row in chosen if row["limit"] != "default" or megapixels(row["image"]) < 1.1]
        if len(chosen) < 2:
            continue
        pixels = torch.tensor([megapixels(row["image"]) for row in chosen]).log()
        times = torch.tensor([row["ms"] for row in chosen]).log()
        spread = pixels - pixels.mean()
        found[name] = float((spread * times).sum() / (spread * spread).sum())
    return found


def main(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub id: use this checkpoint's image processor, of any of the families."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A photo of your own instead of the bundled one.")] = None,
    sizes: Annotated[list[str] | None, typer.Option(help=f"Of {list(SIZES)}, repeatable.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 15,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: its own choice.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure preprocessing and write `preprocessing.json`, a table and a plot."""
    transformers_apt.apply()
    logging.set_verbosity_error()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        check_names("--sizes", sizes, SIZES)
        patch_size = load_processor(model).patch_size
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    about = {
        "hardware": hardware(),
        "model": model,
        "patch_size": patch_size,
        "repeats": repeats,
        "entropy_peak_extra_bytes_per_pixel": entropy_bytes_per_pixel(image, patch_size),
        "maps_ms_1mp_one_thread": maps_alone(image, repeats, patch_size),
        "steps_ms_1mp_one_thread": steps_alone(image, repeats, patch_size),
    }
    rows = whole_processor(image, repeats, sizes or list(SIZES), model)
    about["exponent_of_time_in_pixels"] = {backend: growth(rows, backend) for backend in BACKENDS}

    def plot(axes: Any) -> None:
        for name in METHODS:
            found = [row for row in rows if row["method"] == name and row["backend"] == "torchvision"]
            # where the default limit would shrink the image, show the run without it
            found = [row for row in found if row["limit"] != "default" or megapixels(row["image"]) < 1.1]
            pixels = [megapixels(row["image"]) for row in found]
            axes.plot(pixels, [row["ms"] for row in found], marker="o", label=name)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="megapixels",
            ylabel="milliseconds",
            title="image processor (torchvision)",
        )
        axes.legend(fontsize=7)

    report(output, "preprocessing", rows, about, plot)
    for name, value in (about["maps_ms_1mp_one_thread"] | about["steps_ms_1mp_one_thread"]).items():
        print(f"{name}: {value:.2f} ms")
    print(f"entropy, peak bytes per pixel beyond what the process held: {about['entropy_peak_extra_bytes_per_pixel']}")
    for backend, exponents in about["exponent_of_time_in_pixels"].items():
        found = ", ".join(f"{name} {exponent:.2f}" for name, exponent in exponents.items())
        print(f"{backend}: time grows with pixels to the power of: {found}")


def megapixels(size: str) -> float:
    """`"1920×1080"` -> 2.07."""
    width, height = size.split("×")
    return int(width) * int(height) / 1e6


if __name__ == "__main__":
    typer.run(main)
