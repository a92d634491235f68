"""What an image processor returns, worked out slowly."""

import numpy as np
import torch
from transformers import Qwen2VLVideoProcessor

from apt_code import PatchLayout
from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

VISUAL = ("pixel_values", "image_grid_thw", "image_patch_layout", "image_patch_counts")
"""What a processor returns of images."""

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
SELECTIONS = {"whole": BUDGET, "dropping": {**BUDGET, "drop_tolerance": 30, "predict_tolerance": 60}}
"""For what has to hold with cells left out too; so much is tolerated that small photos lose some."""


def visual(batch):
    return {name: batch[name] for name in VISUAL if name in batch}


def layouts_of(output):
    return PatchLayout.unpack(output["image_patch_layout"], output["image_grid_thw"], output["image_patch_counts"])


def is_stock(output):
    """Upstream's: a row for each cell of the grid, and no layout."""
    return "image_patch_layout" not in output and len(output["pixel_values"]) == int(output["image_grid_thw"].prod())


def of_family(processor_class, image_processor):
    """A processor of Qwen2-VL's shape, with this image processor."""
    return processor_class(image_processor, build_tokenizer(), Qwen2VLVideoProcessor())


def naive_rows(image, layout, image_processor):
    """What the rows of `pixel_values` are by definition, in float64 and one pixel at a time."""
    pixels, side = np.asarray(image, dtype=np.float64), image_processor.patch_size
    mean, std = np.array(image_processor.image_mean), np.array(image_processor.image_std)
    rows = []
    for row, col, size in layout.patches.tolist():
        patch = np.zeros((3, 2, side, side))
        for y in range(side):
            for x in range(side):
                top, left = row * side + y * size, col * side + x * size
                average = pixels[top : top + size, left : left + size].mean(axis=(0, 1))
                patch[:, :, y, x] = ((average / 255 - mean) / std)[:, None]
        rows.append(patch.reshape(-1))
    return torch.tensor(np.stack(rows))
