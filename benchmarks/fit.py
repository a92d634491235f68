"""How `fit` finds its resolution: `python -m benchmarks.fit`.

Over the bundled photos and drawn documents, at full size and at 0.36 of the area, for limits of 15 to 60 % of the
language tokens: how many pictures are tried after the full one, their area, and how the chosen area compares with that
of the largest candidate that fits. Once for each exponent and each number of candidates for a halving of the area.
Counts, not times: the same on every machine.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from tqdm import tqdm
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils import logging

from apt_code import PatchTokenizer
from apt_code.selection.fit import STEPS, limit_of
from benchmarks.measuring import document, hardware, report
from benchmarks.retention import photos
from transformers_apt.models.settings import METHOD, RECOMMENDED

CELL = 28
MOST = 1280 * CELL**2
LIMITS = (0.15, 0.3, 0.45, 0.6)
FINEST = 8
"""Candidates for a halving that are counted; coarser ladders take some of them."""
RUNGS = 4 * FINEST


def ladder(image: Image.Image, area: float) -> list[tuple[int, int]]:
    """`(language tokens, merge cells)` of the image at each candidate, the first at full size."""
    options = {name: value for name, value in RECOMMENDED.items() if name != METHOD}
    tokenizer = PatchTokenizer(patch_selection_method=RECOMMENDED[METHOD], **options)
    found = []
    for rung in range(RUNGS + 1):
        most = int(area * 2 ** (-rung / FINEST))
        height, width = smart_resize(image.height, image.width, CELL, 1, most)
        pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        (layout,) = tokenizer.select_layouts(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        found.append((layout.num_language_tokens, height * width // CELL**2))
    return found


def search(found: list[tuple[int, int]], limit: int, exponent: float, stride: int) -> tuple[int, float, float] | None:
    """Pictures tried, their area and the chosen one over the best, in areas of the full picture; `None` where that
    fits."""
    tokens, cells = found[0]
    if tokens <= limit:
        return None
    tried, area = 0, 0.0
    fraction = 1.0
    for rung in range(stride, RUNGS + 1, stride):
        fraction = 2 ** (-rung / FINEST)
        if min(tokens * fraction**exponent, cells * fraction) > limit:
            continue
        tried, area = tried + 1, area + fraction
        if found[rung][0] <= limit:
            break
    best = next((rung for rung in range(RUNGS + 1) if found[rung][0] <= limit), RUNGS)
    return tried, area, fraction / 2 ** (-best / FINEST)


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Count and write `fit.json`, a table and a plot."""
    logging.set_verbosity_error()
    images = [*photos().values(), document(1240, 1000), document(1280, 720), document(800, 1000)]
    sizes = list(itertools.product(images, (1.0, 0.36)))
    ladders = [
        ladder(image, min(MOST, image.width * image.height) * share) for image, share in tqdm(sizes, desc="pictures")
    ]
    rows: list[dict[str, Any]] = []
    for stride, exponent in itertools.product((1, 2), (0.65, 0.7, 0.75, 0.8, 0.85)):
        found = [search(one, limit_of(one[0][1], share), exponent, stride) for one in ladders for share in LIMITS]
        tried, areas, ratios = zip(*(one for one in found if one is not None), strict=True)
        rows.append(
            {
                "candidates a halving": FINEST // stride,
                "exponent": exponent,
                "tried": statistics.mean(tried),
                "most tried": max(tried),
                "area tried": statistics.mean(areas),
                "chosen / best area": statistics.mean(ratios),
                "worst": min(ratios),
            }
        )

    def plot(axes: Any) -> None:
        for count in (FINEST, FINEST // 2):
            some = [row for row in rows if row["candidates a halving"] == count]
            axes.plot(
                [row["tried"] for row in some], [row["chosen / best area"] for row in some], "o-", label=f"{count}"
            )
        axes.set(xlabel="pictures tried after the full one", ylabel="chosen area / best area")
        axes.legend(title="candidates a halving")

    report(
        output, "fit", rows, {"hardware": hardware(), "pictures": len(ladders), "product": f"{STEPS} a halving"}, plot
    )


if __name__ == "__main__":
    typer.run(main)
