"""Importance maps on trial, beside the package's own: each one function, registered only while an evaluation runs.

`random` is the null hypothesis. The others try to improve on `upsample_mse`; what each is for, and how it did, is in
docs/experiments.md. Maps have the form that `apt_code.entropy_utils` describes.

Axes: b picture, c channel, h w cells of one scale, p side of a cell in pixels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apt_code import entropy_utils
from apt_code.entropy_utils import (
    IMPORTANCE_METHODS,
    ImportanceMethod,
    compute_patch_entropy_batched,
    compute_patch_upsample_mse_batched,
)

PAD = 1e6
_LUMA = (0.2989, 0.5870, 0.1140)


def random_maps(
    images: Tensor, patch_size: int = 14, num_scales: int = 3, pad_value: float = PAD
) -> dict[int, Tensor]:
    """Uniform noise instead of importance; it follows from the pixels, so that a run can be repeated."""
    height, width = images.shape[-2:]
    maps: dict[int, list[Tensor]] = {patch_size * 2**scale: [] for scale in range(num_scales)}
    for image in images:
        rng = np.random.default_rng(zlib.crc32(image.to(torch.uint8).contiguous().cpu().numpy().tobytes()))
        for side, found in maps.items():
            noise = torch.full((-(-height // side), -(-width // side)), pad_value)
            rows, cols = height // side, width // side
            noise[:rows, :cols] = torch.from_numpy(rng.random((rows, cols), dtype=np.float32))
            found.append(noise)
    return {side: torch.stack(found).to(images.device) for side, found in maps.items()}


def _squared_error(images: Tensor, side: int, patch_size: int) -> Tensor:
    """(b, c, H, W) -> (b, h, w, side, side): squared error of whole cells of `side` px, mean over channels."""
    rows, cols = images.shape[-2] // side, images.shape[-1] // side
    b, c = images.shape[:2]
    cells = images[..., : rows * side, : cols * side].float()
    # (b, c, h, p, w, q) -> (b·h·w, c, p, q)
    cells = cells.reshape(b, c, rows, side, cols, side).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, side, side)
    if side == patch_size or len(cells) == 0:
        return torch.zeros(b, rows, cols, side, side)
    small = F.avg_pool2d(cells, side // patch_size)
    error = cells - F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
    return error.square().mean(1).view(b, rows, cols, side, side)


def _padded(complete: Tensor, height: int, width: int, side: int, pad_value: float) -> Tensor:
    right, below = -(-width // side) - complete.shape[2], -(-height // side) - complete.shape[1]
    return F.pad(complete.float(), (0, right, 0, below), value=pad_value)


def _from_errors(reduce: Callable[[Tensor], Tensor], luma: bool = False) -> Callable[..., dict[int, Tensor]]:
    """A map that reduces the squared errors (b, h, w, p, p) of each cell to one number."""

    def compute(
        images: Tensor, patch_size: int = 14, num_scales: int = 3, pad_value: float = PAD
    ) -> dict[int, Tensor]:
        height, width = images.shape[-2:]
        if luma:
            images = torch.einsum("bchw,c->bhw", images.float(), torch.tensor(_LUMA))[:, None]
        sides = [patch_size * 2**scale for scale in range(num_scales)]
        return {
            side: _padded(reduce(_squared_error(images, side, patch_size)), height, width, side, pad_value)
            for side in sides
        }

    return compute


def _worst_block(error: Tensor, block: int = 14) -> Tensor:
    """The largest mean error of any 14-px block: a small word in a large plain cell still counts in full."""
    b, h, w, p, _ = error.shape
    return error.view(b, h, w, p // block, block, p // block, block).mean((4, 6)).amax((-2, -1))


def rate_distortion(
    images: Tensor, patch_size: int = 14, num_scales: int = 3, pad_value: float = PAD
) -> dict[int, Tensor]:
    """Squared error removed per three patches added, judged over the best pruning of the tree below a cell.

    A 28-px cell's split removes its whole error E. A 56-px cell's split removes E56 minus its children's errors, and
    may be followed by splitting its j worst children: the best average over j = 0 … 4 counts.
    """
    maps = compute_patch_upsample_mse_batched(images, patch_size, num_scales, pad_value=pad_value)
    if num_scales < 3:
        return maps
    fine, coarse = maps[2 * patch_size], maps[4 * patch_size]
    rows, cols = images.shape[-2] // (4 * patch_size), images.shape[-1] // (4 * patch_size)
    children = fine[:, : 2 * rows, : 2 * cols].reshape(len(fine), rows, 2, cols, 2).transpose(2, 3).flatten(3)
    worst = children.sort(-1, descending=True).values  # (b, rows, cols, 4)
    gained = 4 * coarse[:, :rows, :cols] - children.sum(-1)  # in units of the error of one 28-px cell
    averages = [(gained + worst[..., :j].sum(-1)) / (1 + j) for j in range(5)]
    coarse = coarse.clone()
    coarse[:, :rows, :cols] = torch.stack(averages).amax(0)
    return maps | {4 * patch_size: coarse}


def error_over_entropy(
    images: Tensor, patch_size: int = 14, num_scales: int = 3, pad_value: float = PAD
) -> dict[int, Tensor]:
    """Reconstruction error, worth half for each two bits of entropy: crisp writing before gravel, grass and noise."""
    error = compute_patch_upsample_mse_batched(images, patch_size, num_scales, pad_value=pad_value)
    bits = compute_patch_entropy_batched(images, patch_size, num_scales, pad_value=pad_value)
    return {
        side: torch.where(error[side] >= pad_value, error[side], error[side] * torch.exp2(-bits[side] / 2))
        for side in error
    }


def _mean(error: Tensor) -> Tensor:
    return error.mean((-2, -1))


def _unbounded(side: int, bins: int) -> float:
    """Nobody is warned of a threshold on a candidate."""
    return math.inf


CANDIDATES: dict[str, ImportanceMethod] = {
    "random": ImportanceMethod(random_maps, "none", _unbounded, (0.5, 0.5), coarse_scores=False),
    "luma_mse": ImportanceMethod(
        _from_errors(_mean, luma=True), "grey levels²", _unbounded, (64.0, 64.0), coarse_scores=True
    ),
    "worst_block": ImportanceMethod(
        _from_errors(_worst_block), "grey levels²", _unbounded, (64.0, 64.0), coarse_scores=True
    ),
    "rate_distortion": ImportanceMethod(rate_distortion, "grey levels²", _unbounded, (64.0, 64.0), coarse_scores=True),
    "error_over_entropy": ImportanceMethod(
        error_over_entropy, "weighted grey levels²", _unbounded, (16.0, 16.0), coarse_scores=True
    ),
}


@contextmanager
def extra_importance() -> Iterator[None]:
    """While open, `importance_method` accepts the names of `CANDIDATES`."""
    table = entropy_utils.IMPORTANCE_METHODS
    if not isinstance(table, dict):
        raise TypeError(f"apt_code's table of importance maps is a {type(table).__name__}, expected a dict to add to")
    added = {name: method for name, method in CANDIDATES.items() if name not in IMPORTANCE_METHODS}
    table.update(added)
    try:
        yield
    finally:
        for name in added:
            del table[name]
