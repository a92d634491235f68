"""What an image processor returns, worked out slowly."""

import numpy as np
import torch

from apt_code import PatchLayout


def layouts_of(output):
    return PatchLayout.unpack(output["image_patch_layout"], output["image_grid_thw"])


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
