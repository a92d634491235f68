"""Overlay of `transformers.models.qwen2_5_vl.modeling_qwen2_5_vl`: most of the tower's blocks attend within windows.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower, `h` heads, `w` windows of one
length.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as upstream
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from apt_code.patch_layout import PatchLayout
from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import modeling
from transformers_apt.models.settings import NUM_SCALES
from transformers_apt.models.tower import MixedSequence, VisionTower

SDPA = "sdpa"

LARGEST = 2 ** (NUM_SCALES - 1)
"""The side of the largest patch, in base cells."""


def windows_of(layouts: list[PatchLayout], side: int) -> tuple[Tensor, Tensor]:
    """The order in which the patches stand window by window, and how many each window has.

    A window is `side × side` base cells. The largest patch's side divides it, so no patch straddles two. Windows of an
    image stay together. Those of a fully split one are in raster order, upstream's; of a mixed one, windows of equal
    length follow each other, so that they can be attended to together. Within a window, patches keep their canonical
    order.

    Returns:
        `order (n,)` int64 indices of patches, and `lengths (windows that have a patch,)` int32.

    Raises:
        ValueError: windows that the largest patch does not divide.
    """
    if side % LARGEST:
        raise ValueError(
            f"windows of {side}×{side} patches: expected a multiple of {LARGEST}, the largest patch's side, as "
            "in the released checkpoints; preprocess with patch_selection_method='off'"
        )
    keys, counts, first = [], [], 0
    for layout in layouts:
        rows, cols = (-(-cells // side) for cells in layout.grid)
        window = layout.rows // side * cols + layout.cols // side
        lengths = torch.bincount(window, minlength=rows * cols)
        if layout.num_patches < layout.grid[0] * layout.grid[1]:
            by_length = lengths.argsort(stable=True)
            window, lengths = by_length.argsort()[window], lengths[by_length]
        keys.append(first + window)
        counts.append(lengths[lengths > 0])
        first += rows * cols
    return torch.cat(keys).argsort(stable=True), torch.cat(counts).int()


def runs_of(lengths: Tensor) -> list[tuple[int, int]]:
    """Segments of equal length that follow each other: `(how many, their length)` of each run."""
    return [(len(list(run)), length) for length, run in itertools.groupby(lengths.tolist())]


@merge_with_config_defaults
@capture_outputs
def mixed_scale_forward(
    self: Any, hidden_states: Tensor, sequence: MixedSequence, **kwargs: Any
) -> BaseModelOutputWithPooling:
    """Upstream's tower over mixed scales; like it, it works in the order of the windows.

    `hidden_states (n, c·t·p·p)` -> `last_hidden_state (n, d)`, `pooler_output (t, hidden_size)`
    """
    order, lengths = windows_of(sequence.layouts, self.window_size // self.patch_size)
    place, order = order.argsort().to(sequence.device), order.to(sequence.device)
    hidden_states = sequence.embed(self, hidden_states)[order]
    position_embeddings = self.rotary_pos_emb(hidden_states, sequence.centres[order])
    windows, images = sequence.segments(lengths, self.config), sequence.images(self.config)
    runs = runs_of(lengths) if self.config._attn_implementation == SDPA else None
    for number, block in enumerate(self.blocks):
        segments = images if number in self.fullatt_block_indexes else windows
        if segments is windows and runs and type(block.attn) is upstream.Qwen2_5_VLVisionAttention:
            segments = {**windows, "runs": runs}
        hidden_states = block(hidden_states, position_embeddings=position_embeddings, **segments, **kwargs)
    merged = self.merger(hidden_states[place[sequence.merger_index]])
    return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=merged)


class Qwen2_5_VLVisionAttention(Overlay):
    """Modifications: `forward` takes `runs`, as `runs_of`, and then sdpa attends to all windows of a run in one call.

    Upstream makes a call for each of some hundred windows, and asks the device for their lengths in every block. Sdpa
    has the same bits for a window alone and among others: its keys are too few to be split by how many there are.
    Whole images are attended to as upstream does it, and so is everything by another attention: flash attention takes
    all segments at once anyway, and eager attention has other bits for several.
    """

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLVisionAttention"

    @overrides("hidden_states", "cu_seqlens", "position_embeddings")
    def forward(
        upstream_forward: Any,
        self: Any,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: Any = None,
        *args: Any,
        runs: Sequence[tuple[int, int]] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if runs is None:
            return upstream_forward(self, hidden_states, cu_seqlens, position_embeddings, *args, **kwargs)
        kwargs.pop("max_seqlen", None)  # which flash attention wants to know
        # (n, 3·h·d) -> three of (n, h, d)
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = upstream.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        return self.proj(attend_in_runs(self, (query, key, value), runs, kwargs))


@torch.compiler.disable  # it would be compiled anew for every picture; upstream's loop over windows is left out too
def attend_in_runs(
    attention: Any, states: tuple[Tensor, ...], runs: Sequence[tuple[int, int]], kwargs: Mapping[str, Any]
) -> Tensor:
    """Query, key and value `(n, h, d)` -> `(n, h·d)`, with one call of sdpa for each run of windows."""
    attend = ALL_ATTENTION_FUNCTIONS[SDPA]
    dropout = attention.attention_dropout if attention.training else 0.0
    found = []
    lengths = [count * length for count, length in runs]
    for *parts, (count, length) in zip(*(each.split(lengths) for each in states), runs, strict=True):
        # (w·n, h, d) -> (w, h, n, d)
        windows = [part.unflatten(0, (count, length)).transpose(1, 2) for part in parts]
        output, _ = attend(
            attention, *windows,
            attention_mask=None, scaling=attention.scaling, dropout=dropout, is_causal=False, **kwargs,
        )  # fmt: skip
        found.append(output.reshape(count * length, -1))  # (w, n, h, d) -> (w·n, h·d)
    return torch.cat(found)


class Qwen2_5_VisionTransformerPretrainedModel(VisionTower):
    """Modifications: those of every family's tower."""

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VisionTransformerPretrainedModel"
    mixed_scale_forward = mixed_scale_forward


class Qwen2_5_VLModel(modeling.MultimodalModel):
    """Modifications: those of every family's model."""

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLModel"


class Qwen2_5_VLForConditionalGeneration(modeling.ForConditionalGeneration):
    """Modifications: those of every family's."""

    target = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLForConditionalGeneration"
