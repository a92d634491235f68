"""The branch through which a tower reads coarse patches at full resolution, as in the APT paper.

Choudhury et al., "Accelerating Vision Transformers with Adaptive Patch Sizes" (arXiv 2510.18091): a coarse patch's
embedding is `E(area average) + Z(conv(E(its parts)))`. `E` is the tower's own patch embedding. `conv`, 2 × 2 with a
stride of 2, is applied once per scale: to the 2 × 2 parts of a patch of size 2 once, to the 4 × 4 of one of size 4
twice. `Z` is linear and starts at zero, so a new branch changes nothing. Base patches do not pass it.

`transformers_apt.training` puts a branch on a model, takes it off, saves and loads it.

Axis legend: `n` patches of all images, `k` coarse ones among them, `m` their parts, `d` width of the tower.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import initialization as init

from apt_code.patch_layout import InvalidLayoutError, PatchLayout
from transformers_apt.models.layouts import PARTS_KEY, num_rows
from transformers_apt.models.settings import logger

FORMULA = 1
"""Counts the changes of what a branch computes."""

CONFIG_KEY = "patch_branch"
"""Where the config of a tower says which formula its branch has. A tower without a branch lacks it."""


class PatchBranch(nn.Module):
    """`Z(conv(parts))`.

    Both are convolutions. `Z` has a kernel of 1 × 1: a linear layer, but none that quantisation takes, or LoRA on all
    linear layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=2, stride=2)
        self.zero = nn.Conv2d(width, width, kernel_size=1)
        self.start_at_zero()

    def start_at_zero(self) -> None:
        """Weights that a checkpoint has brought stay as they are."""
        for weight in self.zero.parameters():
            init.zeros_(weight)

    def forward(self, parts: Tensor, sizes: Tensor) -> Tensor:
        """What is added to the embeddings of coarse patches.

        Args:
            parts: `(m, d)`, the embedded parts of one patch after the other, each row by row.
            sizes: `(k,)` int64 on the host, the size of each patch in base cells.

        Returns:
            `(k, d)`, in the type of the branch's weights.
        """
        parts = parts.to(self.conv.weight.dtype)
        ends = (sizes**2).cumsum(0)
        order, squares = [], []
        for size in sorted({2, *sizes.tolist()}):  # 2 also where there is none: every weight has a part in the result
            chosen = (sizes == size).nonzero().squeeze(1)
            index = (ends[chosen] - size**2).unsqueeze(1) + torch.arange(size**2, device=sizes.device)
            square = rearrange(parts[index.to(parts.device)], "k (h w) d -> k d h w", h=size)
            # or the weights' gradients would come in another order of memory than the weights
            square = square.contiguous()
            while square.shape[-1] > 1:
                square = self.conv(square)
            order.append(chosen)
            squares.append(square)
        found = self.zero(torch.cat(squares)).flatten(1)
        return found[torch.cat(order).argsort().to(found.device)]


def branch_of(tower: Any) -> Any:
    """The branch of a tower, maybe wrapped by another library, or `None`."""
    return getattr(tower, "branch", None)


def build(tower: Any) -> PatchBranch:
    """A new branch, in a tower's width; on the device and in the type that are torch's defaults now."""
    return PatchBranch(tower.patch_embed.embed_dim)


def build_as_configured(tower: Any) -> None:
    """Give a tower under construction the branch that its config speaks of, if it does.

    Raises:
        ValueError: a branch of another formula.
    """
    formula = getattr(tower.config, CONFIG_KEY, None)
    if formula is not None:
        check_formula(formula)
        tower.branch = build(tower)


def check_formula(formula: Any) -> None:
    """Refuse a branch that would be computed otherwise than it was trained.

    Raises:
        ValueError: so it is.
    """
    if formula != FORMULA:
        raise ValueError(
            f"a branch of formula {formula!r}, and this transformers-apt computes {FORMULA}: upgrade it, or train the "
            "branch anew"
        )


def sizes_of(layouts: list[PatchLayout]) -> Tensor:
    """`(n,)` int64 on the host: the sizes of all patches."""
    return torch.cat([layout.sizes for layout in layouts]).cpu()


def checked_parts(tower: Any, parts: Tensor | None, layouts: list[PatchLayout]) -> Tensor | None:
    """The parts that a tower's branch reads: one row for each base cell under a coarse patch; `None` without a branch.

    Raises:
        InvalidLayoutError: they are missing, or are not those of these layouts.
    """
    if branch_of(tower) is None:
        if parts is not None and not torch.compiler.is_compiling():
            logger.warning_once(f"{PARTS_KEY} has no effect on a model without a branch; patch_parts=False saves it.")
        return None
    sizes = sizes_of(layouts)
    expected = int((sizes[sizes > 1] ** 2).sum())
    if parts is None:
        if expected:
            raise InvalidLayoutError(
                f"{int((sizes > 1).sum())} coarse patches without {PARTS_KEY}, which this model's branch reads; set "
                "processor.image_processor.patch_parts = True, or take the branch off with "
                "transformers_apt.training.remove(model)"
            )
        return None
    if not isinstance(parts, Tensor):
        raise InvalidLayoutError(
            f"{PARTS_KEY} is a {type(parts).__name__}, expected a tensor; call the processor with return_tensors='pt'"
        )
    found = num_rows(parts, tower.config, PARTS_KEY)
    if found != expected:
        raise InvalidLayoutError(
            f"{PARTS_KEY} has {found} rows, expected {expected}, one for each base cell under the coarse patches of "
            "image_patch_layout; pass the two that came from the same processor call"
        )
    return parts


def embed(tower: Any, rows: Tensor, parts: Tensor | None, layouts: list[PatchLayout]) -> Tensor:
    """A tower's patch embedding, with what its branch adds to coarse patches.

    Args:
        tower: of any family.
        rows: `(n, c·t·p·p)`.
        parts: as `checked_parts`.
        layouts: one per image.

    Returns:
        `(n, d)`
    """
    embedded = tower.patch_embed(rows)
    branch = branch_of(tower)
    if branch is None or (parts is None and not torch.is_grad_enabled()):
        return embedded
    sizes = sizes_of(layouts)
    coarse = (sizes > 1).nonzero().squeeze(1)
    # without a coarse patch, all of it is empty; but the branch has its gradients, which a trainer waits for
    added = branch(tower.patch_embed(rows[:0] if parts is None else parts), sizes[coarse])
    return embedded.index_add(0, coarse.to(embedded.device), added.to(embedded))


def tie(tower: Any, output: Any) -> Any:
    """The output of a tower's pass at full resolution, with the branch in its graph: it adds no row.

    Distributed trainers wait for a gradient of every weight, which is zero here.
    """
    branch = branch_of(tower)
    if branch is None or not (tower.training and torch.is_grad_enabled()):
        return output
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        return output
    nothing = torch.empty(0, dtype=torch.int64, device="cpu")
    parts = pooled.new_empty(0, tower.patch_embed.embed_dim)
    added = branch(parts, nothing).reshape(0, pooled.shape[1]).to(pooled)
    output.pooler_output = pooled.index_add(0, nothing.to(pooled.device), added)
    return output
