"""What the vision towers of all families do with a mixed-scale sequence: places, attention segments, mergers.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import get_max_seqlen

from apt_code.patch_layout import PatchLayout
from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import branch
from transformers_apt.models.layouts import num_rows, refuse_lone, refuse_mixed_scales, unpack

PRECOMPUTED = (
    "position_ids", "cu_seqlens", "max_seqlen", "interp_indices", "interp_weights", "window_index",
    "cu_window_seqlens", "max_window_seqlen",
)  # fmt: skip
"""Arguments of upstream's towers that hold what follows from the grid."""


class MixedSequence:
    """The patches of a call's images as one sequence.

    Args:
        layouts: one per image.
        device: where the tower computes.
        parts: `(m, c·t·p·p)`, the base patches that coarse patches cover, for a tower with a branch.

    Attributes:
        centres: `(n, 2)` float32 `(row, col)`, each patch's own, in base units.
        lengths: `(images,)` int32 on the host, patches of each image.
    """

    def __init__(self, layouts: list[PatchLayout], device: torch.device, parts: Tensor | None = None) -> None:
        self.layouts = layouts
        self.device = device
        self.parts = parts
        self.centres = torch.cat([layout.centres for layout in layouts]).to(device)
        self.lengths = torch.tensor([layout.num_patches for layout in layouts], dtype=torch.int32, device="cpu")
        self._starts = F.pad(self.lengths.cumsum(0), (1, 0)).tolist()

    def embed(self, tower: Any, rows: Tensor) -> Tensor:
        """`rows (n, c·t·p·p)` -> `(n, d)`: the tower's patch embedding, with what its branch adds, if it has one."""
        return branch.embed(tower, rows, self.parts, self.layouts)

    def segments(self, lengths: Tensor, config: Any) -> dict[str, Any]:
        """`cu_seqlens` and `max_seqlen` of attention segments of these lengths, as a tower's block takes them."""
        cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        max_seqlen = get_max_seqlen(cu_seqlens, config)
        return {"cu_seqlens": cu_seqlens.to(self.device), "max_seqlen": max_seqlen}

    def images(self, config: Any) -> dict[str, Any]:
        """One attention segment per image."""
        return self.segments(self.lengths, config)

    @property
    def merger_index(self) -> Tensor:
        """`(4 t,)` int64: the rows that a merger reads. Four base patches, or one coarse patch four times, make one
        language token."""
        parts = zip(self.layouts, self._starts, strict=False)
        return torch.cat([layout.merger_index + start for layout, start in parts]).to(self.device)

    def sample_table(self, table: nn.Embedding) -> Tensor:
        """`(n, d)`: a square table of learned positions, stretched over each image and sampled at the centres.

        Bilinear, with the corners of the table at the centres of the corner cells, as upstream resamples it.
        """
        side = int(table.num_embeddings**0.5)
        sizes = torch.tensor([layout.grid for layout in self.layouts], device=self.device)  # (images, 2)
        sizes = sizes.repeat_interleave(self.lengths.to(self.device), dim=0)  # (n, 2)
        places = self.centres * (side - 1) / torch.clamp(sizes - 1, min=1)
        low = places.floor()
        # in upstream's own steps, so that base patches get its bits
        weights = torch.stack([1 - (places - low), 1 - (places - low - 1).abs()], dim=1)  # (n, 2 taps, 2 axes)
        taps = torch.stack([low.long(), low.long() + 1], dim=1).clamp(0, side - 1)
        # rows times columns: (n, 2, 2) -> (n, 4)
        index = (taps[:, :, None, 0] * side + taps[:, None, :, 1]).flatten(1)
        weight = (weights[:, :, None, 0] * weights[:, None, :, 1]).flatten(1)
        return (table(index) * weight[:, :, None]).sum(1)


class VisionTower(Overlay):
    """Modifications:

    - `forward` takes `patch_layout`, the concatenated layouts (and `patch_counts`) or a list of checked ones, and then
      runs the family's `mixed_scale_forward`; without it, pixels that are not one row per cell of the grid are refused
      instead of being read at wrong places;
    - where its config speaks of a branch (`models.branch`), the tower is built with one, which reads `patch_parts`.
    """

    @overrides("config")
    def __init__(upstream: Any, self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        upstream(self, config, *args, **kwargs)
        branch.build_as_configured(self)

    @overrides("module")
    def _init_weights(upstream: Any, self: Any, module: nn.Module) -> None:
        upstream(self, module)
        if isinstance(module, branch.PatchBranch):
            module.start_at_zero()

    @overrides("hidden_states", "grid_thw")
    def forward(
        upstream: Any,
        self: Any,
        hidden_states: Tensor,
        grid_thw: Tensor,
        *,
        patch_layout: Tensor | list[PatchLayout] | None = None,
        patch_counts: Tensor | None = None,
        patch_parts: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        precomputed = sorted(set(kwargs) & set(PRECOMPUTED))
        if patch_layout is None:
            refuse_lone(patch_counts, patch_parts)
            positions = kwargs.get("position_ids")
            if positions is not None or not precomputed:
                refuse_mixed_scales(hidden_states, grid_thw, self.config, positions)
            return branch.tie(self, upstream(self, hidden_states, grid_thw, **kwargs))
        if not isinstance(patch_layout, list):
            patch_layout = unpack(patch_layout, grid_thw, patch_counts, num_rows(hidden_states, self.config))
        if precomputed:
            raise ValueError(
                f"image_{precomputed[0]} with image_patch_layout: what it holds follows from the layout; leave it "
                "out, or preprocess with patch_selection_method='off'"
            )
        parts = branch.checked_parts(self, patch_parts, patch_layout)
        sequence = MixedSequence(patch_layout, hidden_states.device, parts)
        return self.mixed_scale_forward(hidden_states, sequence, **kwargs)
