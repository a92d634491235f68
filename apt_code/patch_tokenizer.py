"""`PatchTokenizer`: from a batch of images to packed mixed-scale patches.

Axis legend: `b` images of one shape, `c` channels, `H W` pixels, `h w` base grid, `n` patches of the whole batch,
`p` base patch side. Data flows one way: images -> importance maps -> masks -> layouts -> packed patches.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from loguru import logger
from torch import Tensor, nn

from apt_code.device import on_device
from apt_code.device.dropping import drop_flat
from apt_code.device.selection import select_batches
from apt_code.dropping import check_tolerance, drop_repeats
from apt_code.importance import IMPORTANCE_METHODS, threshold_warning
from apt_code.importance.common import PAD_VALUE
from apt_code.importance.entropy import BINS
from apt_code.one_pass import select_in_one_pass
from apt_code.patch_layout import PatchLayout
from apt_code.patch_packing import area_average, cells_of, pack_patches
from apt_code.selection import BUDGETED, SELECTION_METHODS, check_alpha
from apt_code.selection.plan import BudgetPlan, plan_of_maps, plan_of_size
from apt_code.selection.settings import check_thresholds
from apt_code.selection.tiling import lay_out, tile

PREFIX_MARK = -1
"""Mark of a prefix (class) token in `output_mask`."""


@dataclass(frozen=True)
class TokenizedImages:
    """What `PatchTokenizer.forward` returns.

    Attributes:
        patches: `(n, c, p, p)` float32, the patches of all images in canonical order.
        layouts: one `PatchLayout` per image.
        masks: `{side in px: (b, rows, cols)}` float 0/1, of the layouts.
        output_mask: `(sum of seqlens,)` int64, each token's patch size in base cells, −1 for a prefix token.
        seqlens: `(b,)` int64, tokens per image, prefix tokens included.
    """

    patches: Tensor
    layouts: list[PatchLayout]
    masks: dict[int, Tensor]
    output_mask: Tensor
    seqlens: Tensor


class PatchTokenizer(nn.Module):
    """Adaptive Patch Tokenization (Choudhury et al., "Accelerating Vision Transformers with Adaptive Patch Sizes").

    Args:
        num_scales: 1 to 4; patch sides are `base_patch_size · 2^i`.
        base_patch_size: side of the finest patch in pixels.
        image_size: `(H, W)` that every batch must have; `None` accepts any size.
        thresholds: for `v1`, one per coarse scale, finest first, in the unit of the importance map; `None` takes the
            map's own ([3, 2] bits for entropy). Cells below it stay whole: with `float('inf')` all that can.
        mean, std: per channel, of images scaled to [0, 1]. Given both, patches come out as `(x / 255 − mean) / std`;
            given neither, in the images' own values.
        patch_selection_method: `'v1'` (fixed thresholds), `'v2'` (one threshold, alpha × mean importance: larger
            alpha, fewer patches), `'budget'` (alpha is the fraction of patches to keep) or `'joint'` (the same, with
            fewer language tokens).
        alpha: finite and ≥ 0 for `v2`, in [0, 1] for `budget` and `joint`; `v1` ignores it.
        importance_method: `'entropy'`, `'laplacian'` or `'upsample_mse'`.
        drop_tolerance: after the selection, plain patches and cells that repeat the colour on their left or above, to
            within this many grey levels, are left out (see `apt_code.dropping`; 2 is recommended). `None` or `'off'`
            leaves none out.
        predict_tolerance: patches and cells whose pixels their left or upper neighbour predicts to within this many
            grey levels are left out as well, or, without a `drop_tolerance`, instead. `None` or `'off'` leaves none
            out.
        num_prefix_tokens: class tokens in front of each image's patches; Qwen2-VL has none.
        bins: histogram bins of the entropy.

    Images are `(b, c, H, W)` with values in [0, 255], c 1 or 3. Sides need not be multiples of the patch size: cells
    that stick out are split, and a base patch that sticks out is zero-padded. With either tolerance sides have to be
    multiples of twice the base patch.

    Attributes:
        last_budget_info: after a `budget` or `joint` selection, `base_tokens`, `base_small_tokens`, `budget`, `k`,
            `alpha` and `actual`, per image (the images of a batch share them); `None` after another method. With
            either tolerance also `dropped`, a list: how many of each image's `actual` patches were left out.

    Warns:
        UserWarning: `v1` with a threshold above what its map can reach, which keeps every cell whole.
    """

    num_scales: int
    base_patch_size: int
    image_size: tuple[int, int] | None
    importance_method: str
    thresholds: list[float]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    patch_selection_method: str
    alpha: float
    drop_tolerance: float | None
    predict_tolerance: float | None
    num_prefix_tokens: int
    bins: int
    last_budget_info: dict[str, Any] | None

    def __init__(
        self,
        num_scales: int = 3,
        base_patch_size: int = 14,
        image_size: tuple[int, int] | None = None,
        thresholds: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        patch_selection_method: str = "v1",
        alpha: float = 1.0,
        importance_method: str = "entropy",
        drop_tolerance: float | str | None = None,
        predict_tolerance: float | str | None = None,
        num_prefix_tokens: int = 0,
        bins: int = BINS,
    ) -> None:
        super().__init__()
        if num_scales not in (1, 2, 3, 4):
            raise ValueError(f"num_scales={num_scales!r}: expected 1, 2, 3 or 4")
        if not isinstance(importance_method, str) or importance_method not in IMPORTANCE_METHODS:
            raise ValueError(f"importance_method={importance_method!r}: expected one of {sorted(IMPORTANCE_METHODS)}")
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std}: give both, to normalise the patches, or neither")
        counts = (
            ("base_patch_size", base_patch_size, 1),
            ("bins", bins, 1),
            ("num_prefix_tokens", num_prefix_tokens, 0),
        )
        for name, value, least in counts:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} of type {type(value).__name__}: expected an integer")
            if value < least:
                raise ValueError(f"{name}={value}: expected {least} or more")
        if thresholds is None:
            thresholds = IMPORTANCE_METHODS[importance_method].thresholds(num_scales)
        self.mean, self.std = mean, std
        settings = {
            "num_scales": num_scales,
            "base_patch_size": base_patch_size,
            "image_size": tuple(image_size) if image_size is not None else None,
            "importance_method": importance_method,
            "thresholds": check_thresholds(thresholds, num_scales),
            "patch_selection_method": self._check_method(patch_selection_method, alpha),
            "alpha": alpha,
            "drop_tolerance": check_tolerance(drop_tolerance),
            "predict_tolerance": check_tolerance(predict_tolerance, "predict_tolerance"),
            "num_prefix_tokens": num_prefix_tokens,
            "bins": bins,
            "last_budget_info": None,
        }
        for attribute, setting in settings.items():
            # a module looks at everything that is set on it, for parameters, which takes longer than all checks
            object.__setattr__(self, attribute, setting)
        if "thresholds" in SELECTION_METHODS[patch_selection_method].reads:
            self._warn_of_thresholds(stacklevel=3)

    def _warn_of_thresholds(self, stacklevel: int) -> None:
        text = threshold_warning(tuple(self.thresholds), self.importance_method, self.base_patch_size, self.bins)
        if text is not None:
            warnings.warn(text, stacklevel=stacklevel)

    @staticmethod
    def _check_method(method: str, alpha: float) -> str:
        if not isinstance(method, str) or method not in SELECTION_METHODS:
            raise ValueError(f"patch_selection_method={method!r}: expected one of {list(SELECTION_METHODS)}")
        check_alpha(method, alpha)
        return method

    def compute_importance_maps(self, images: Tensor) -> dict[int, Tensor]:
        """`{side in px: (b, ceil(H / side), ceil(W / side))}` float32; see `apt_code.importance`."""
        if self.image_size is not None and tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])} pixels, this tokenizer was made for {self.image_size}; "
                "resize them, or build it with image_size=None"
            )
        method = IMPORTANCE_METHODS[self.importance_method]
        options = {name: getattr(self, name) for name in method.reads}
        return method.compute(images, self.base_patch_size, self.num_scales, pad_value=PAD_VALUE, **options)

    def construct_masks(
        self,
        batch_maps: Mapping[int, Tensor],
        patch_selection_method: str | None = None,
        alpha: float | None = None,
    ) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """Select patches; `method` and `alpha` given here win over the constructor's.

        Returns:
            `(masks, output_mask, seqlens)` as in `TokenizedImages`.

        Raises:
            ValueError: the tokenizer has a tolerance: which cells repeat their neighbour, no map says.
        """
        for name in ("drop_tolerance", "predict_tolerance"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"construct_masks with {name}={getattr(self, name):g}: maps do not show which cells repeat their "
                    "neighbour; call the tokenizer itself, which has the pixels, or build it with "
                    f"{name}=None"
                )
        masks = self._select(batch_maps, patch_selection_method, alpha)
        layouts = self.layouts_of(masks)
        output_mask, seqlens = self._marks(layouts)
        return masks, output_mask, seqlens

    def construct_patch_groups(self, images: Tensor, masks: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """The kept patches grouped by size, each group image by image in raster order.

        Returns:
            `resized_patches_<side>`: `(n_side, c, p, p)`, every kept patch on the base raster; and for coarse sides
            `constituent_patches_<side>`: `(n_side, (side / p)², c, p, p)`, the same patches at full resolution.

        Raises:
            ValueError: masks for another batch or image size.
        """
        base = self.base_patch_size
        groups = {}
        for side in sorted(masks):
            expected = (len(images), -(-images.shape[-2] // side), -(-images.shape[-1] // side))
            if tuple(masks[side].shape) != expected:
                raise ValueError(
                    f"masks[{side}] has shape {tuple(masks[side].shape)}, expected {expected} for images of shape "
                    f"{tuple(images.shape)}; construct the masks from the importance maps of these images"
                )
            chosen = cells_of(images, side)[masks[side].bool()]
            groups[f"resized_patches_{side}"] = self._normalise(area_average(chosen, side // base))
            if side > base:
                # (n, c, s·p, s·p) -> (n, s·s, c, p, p)
                parts = rearrange(chosen, "n c (a p) (b q) -> n (a b) c p q", p=base, q=base)
                groups[f"constituent_patches_{side}"] = self._normalise(parts.float())
        return groups

    def forward(
        self, images: Tensor, patch_selection_method: str | None = None, alpha: float | None = None
    ) -> TokenizedImages:
        """Images to packed patches: the three steps above, in canonical order, and before packing the dropping."""
        maps = self.compute_importance_maps(images)
        masks = self._select(maps, patch_selection_method, alpha, (images.shape[-2], images.shape[-1]))
        layouts = self.layouts_of(masks)
        if self.drops:
            layouts = self._drop(images, layouts)
            kept = [layout.to_masks(self.base_patch_size, self.num_scales) for layout in layouts]
            masks = {side: torch.stack([masks[side] for masks in kept]).to(images.device) for side in masks}
        patches = self._normalise(pack_patches(images, layouts, self.base_patch_size))
        output_mask, seqlens = self._marks(layouts)
        return TokenizedImages(patches, layouts, masks, output_mask, seqlens)

    def select_layouts(self, images: Tensor) -> list[PatchLayout]:
        """The tiling of every image, without packing any pixels."""
        if on_device(images):
            ((layouts, _),) = select_batches(self, [images])
            return layouts
        found = select_in_one_pass(self, images)
        if found is not None:
            return found
        return self.layouts_by(images, self.maps_to_select_by(images))

    def maps_to_select_by(self, images: Tensor) -> dict[int, Tensor]:
        """The importance maps, or none where a budget keeps every patch and no pixel has to be read."""
        return {} if self._keeps_everything(images) else self.compute_importance_maps(images)

    def layouts_by(
        self,
        images: Tensor,
        maps: Mapping[int, Tensor],
        sums: Mapping[int, Tensor] | None = None,
    ) -> list[PatchLayout]:
        """The tilings by `maps_to_select_by` of these images, and by `flat_sums` of them if given."""
        if maps:
            layouts = lay_out(maps, self._rule(maps, image_size=(images.shape[-2], images.shape[-1])))
        else:
            self.last_budget_info = self._plan_of(images).info()
            layouts = [PatchLayout.uniform(self.grid_of(images))] * len(images)
        return self._drop(images, layouts, sums)

    @property
    def drops(self) -> bool:
        """Whether a tolerance leaves patches out."""
        return self.drop_tolerance is not None or self.predict_tolerance is not None

    def _drop(
        self, images: Tensor, layouts: list[PatchLayout], sums: Mapping[int, Tensor] | None = None
    ) -> list[PatchLayout]:
        """Without what repeats its neighbour, where the tokenizer has a tolerance; by `flat_sums` if given."""
        if not self.drops:
            return layouts
        if sums and self.drop_tolerance is not None:
            size = (images.shape[-2], images.shape[-1])
            kept = drop_flat(sums, size, layouts, self.base_patch_size, self.drop_tolerance)
        else:
            kept = drop_repeats(images, layouts, self.base_patch_size, self.drop_tolerance, self.predict_tolerance)
        if self.last_budget_info is not None:
            dropped = [len(before) - len(after) for before, after in zip(layouts, kept, strict=True)]
            self.last_budget_info["dropped"] = dropped
        return kept

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The base grid `(h, w)` of these images."""
        return -(-images.shape[-2] // self.base_patch_size), -(-images.shape[-1] // self.base_patch_size)

    def _keeps_everything(self, images: Tensor) -> bool:
        """Whether a budget splits every cell, so that no pixel has to be read; floats are, to find the unreadable."""
        if self.patch_selection_method not in BUDGETED or self.image_size is not None or images.is_floating_point():
            return False
        plan = self._plan_of(images)
        return plan.actual == plan.base_small_tokens

    def _plan_of(self, images: Tensor) -> BudgetPlan:
        size = (images.shape[-2], images.shape[-1])
        return plan_of_size(size, self.base_patch_size, self.alpha, self.num_scales)

    @staticmethod
    def layouts_of(masks: Mapping[int, Tensor]) -> list[PatchLayout]:
        """One `PatchLayout` per image of a batch of masks. Layouts live on the host: they are index arithmetic."""
        return PatchLayout.from_masks_of_batch(masks)

    def _select(
        self,
        maps: Mapping[int, Tensor],
        patch_selection_method: str | None = None,
        alpha: float | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> dict[int, Tensor]:
        """Masks of the tilings, as `_rule`."""
        return tile(maps, self._rule(maps, patch_selection_method, alpha, image_size))

    def _rule(
        self,
        maps: Mapping[int, Tensor],
        patch_selection_method: str | None = None,
        alpha: float | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> dict[int, Tensor]:
        """Which cells would be kept whole; where the pixels' `image_size` is known, without waiting for a GPU."""
        alpha = self.alpha if alpha is None else alpha
        method = self.patch_selection_method if patch_selection_method is None else patch_selection_method
        self._check_method(method, alpha)
        self.last_budget_info = None
        logger.debug("{} alpha={} on maps of {} px", method, alpha, list(maps))
        row = SELECTION_METHODS[method]
        if row.budgeted:
            if image_size is None:
                plan = plan_of_maps(maps, alpha)
            else:
                plan = plan_of_size(image_size, self.base_patch_size, alpha, self.num_scales)
            self.last_budget_info = plan.info()
            return row.rule(maps, plan, IMPORTANCE_METHODS[self.importance_method].coarse_scores)
        read_before = SELECTION_METHODS[self.patch_selection_method].reads
        if "thresholds" in row.reads - read_before:  # else it was said when the tokenizer was built
            self._warn_of_thresholds(stacklevel=5)
        given = {"thresholds": self.thresholds, "alpha": alpha}
        return row.rule(maps, **{name: given[name] for name in given if name in row.reads})

    def _marks(self, layouts: Sequence[PatchLayout]) -> tuple[Tensor, Tensor]:
        prefix = torch.full((self.num_prefix_tokens,), PREFIX_MARK, dtype=torch.int64)
        output_mask = torch.cat([part for layout in layouts for part in (prefix, layout.sizes)])
        seqlens = torch.tensor([self.num_prefix_tokens + layout.num_patches for layout in layouts], dtype=torch.int64)
        return output_mask, seqlens

    def _normalise(self, patches: Tensor) -> Tensor:
        """`(..., c, p, p)` grey levels -> normalised, where the tokenizer was given `mean` and `std`."""
        if self.mean is None or self.std is None:
            return patches
        if not len(self.mean) == len(self.std) == patches.shape[-3]:
            raise ValueError(
                f"mean={self.mean} and std={self.std} for images of {patches.shape[-3]} channel(s): expected one "
                "value of each per channel"
            )
        mean = torch.tensor(self.mean, dtype=torch.float32, device=patches.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=patches.device).view(-1, 1, 1)
        return (patches / 255 - mean) / std
