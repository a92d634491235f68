"""Shows why a map loses answers: `python -m benchmarks.quality.pictures --model FOLDER --out picture.png`.

One column per kind of scene; below the picture, what each importance map leaves of it at the same number of patches,
with the answer that the model gives to the question above.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from apt_code import PatchTokenizer
from apt_code.visualization import reconstruct, to_picture
from benchmarks.quality.asking import Subject
from benchmarks.quality.items import Item, generated
from benchmarks.quality.scenes import KINDS


def choose(items: list[Item], subject: Subject, kinds: tuple[str, ...], px: str) -> list[Item]:
    """The first reading question of each kind and text size that the model answers at full resolution."""
    found = []
    for kind in kinds:
        for item in items:
            if f"read on {kind}" in item.groups and px in item.groups:
                answer = subject.answer([item.load()], [item.question], {"patch_selection_method": "off"})[0][0]
                if answer == item.answers[0]:
                    found.append(item)
                    break
        else:
            raise ValueError(f"the model answers no reading question {px} on {kind}: draw more with --count")
    return found


def resized(image: Image.Image) -> torch.Tensor:
    """(3, H, W) uint8 at the size Qwen2-VL's image processor gives it."""
    height, width = (round(side / 28) * 28 for side in (image.height, image.width))
    return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BICUBIC))).permute(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--maps", nargs="+", default=["entropy", "upsample_mse"])
    parser.add_argument("--kinds", nargs="+", default=[kind for kind in KINDS if kind != "page"], choices=KINDS)
    parser.add_argument("--px", default="read 14-19 px", help="group of text sizes to choose from")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    torch.set_num_threads(1)
    subject = Subject(options.model, "cpu", "float32", new_tokens=8)
    chosen = choose(generated(options.count, options.seed), subject, tuple(options.kinds), options.px)
    rows = len(options.maps) + 1
    figure, axes = plt.subplots(rows, len(chosen), figsize=(3.2 * len(chosen), 3.4 * rows), squeeze=False)
    for column, item in enumerate(chosen):
        pixels = resized(item.load())
        axes[0][column].imshow(to_picture(pixels))
        axes[0][column].set_title(f"{item.question}\n{item.answers[0]}", fontsize=9)
        for row, name in enumerate(options.maps, 1):
            settings = {"patch_selection_method": "budget", "alpha": options.alpha, "importance_method": name}
            layout = PatchTokenizer(base_patch_size=14, **settings).select_layouts(pixels[None])[0]
            answer, patches, _ = subject.answer([item.load()], [item.question], settings)
            axes[row][column].imshow(to_picture(reconstruct(pixels, layout, 14)))
            axes[row][column].set_title(f"{name}, {patches[0]} patches\n{answer[0]}", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
