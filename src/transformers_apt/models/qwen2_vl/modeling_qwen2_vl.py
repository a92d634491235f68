"""Overlay of `transformers.models.qwen2_vl.modeling_qwen2_vl`: the tower and M-RoPE read mixed-scale patches.

Axis legend: `n` patches of all images, `t` language tokens, `d` width of the tower.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import (
    accepts_precomputed_kwargs,
    can_return_tuple,
    get_max_seqlen,
    merge_with_config_defaults,
)
from transformers.utils.output_capturing import capture_outputs

from apt_code.patch_layout import MERGE_SIZE, InvalidLayoutError, PatchLayout
from transformers_apt.models.preprocessing import LAYOUT_KEY
from transformers_apt.models.upstream import CACHE_NAMES, cache_in
from transformers_apt.overlay import Overlay, overrides


class MixedScaleGrid(tuple[int, int, int]):
    """A row `(t, h, w)` of `image_grid_thw` that knows its image's layout.

    Upstream's `get_rope_index` walks the rows of `image_grid_thw` and asks `get_vision_position_ids` for the
    positions of each: this is how the layout travels between the two.
    """

    layout: PatchLayout

    @classmethod
    def of(cls, layout: PatchLayout) -> "MixedScaleGrid":
        """The row of one image."""
        grid = cls((1, *layout.grid))
        grid.layout = layout
        return grid


def unpack(
    image_patch_layout: torch.Tensor, image_grid_thw: torch.Tensor | None, num_rows: int | None = None
) -> list[PatchLayout]:
    """One checked layout per image, where known for `num_rows` rows of pixels.

    Raises:
        InvalidLayoutError: the layouts do not tile the grids, or are not those of these pixels.
    """
    if image_grid_thw is None:
        raise InvalidLayoutError("image_patch_layout without image_grid_thw; pass everything the processor returned")
    if not isinstance(image_patch_layout, torch.Tensor):
        raise InvalidLayoutError(
            f"image_patch_layout is a {type(image_patch_layout).__name__}, expected an int64 tensor of shape "
            "(num_patches, 3); call the processor with return_tensors='pt'"
        )
    if image_patch_layout.is_meta:
        raise InvalidLayoutError(
            "image_patch_layout is on the device 'meta', which holds no values; expected it on a real one: pass what "
            "the processor returned"
        )
    if num_rows is not None and num_rows != len(image_patch_layout):
        raise InvalidLayoutError(
            f"pixel_values has {num_rows} rows and image_patch_layout {len(image_patch_layout)}, expected "
            "one row per patch in both; pass the two that came from the same processor call"
        )
    return PatchLayout.unpack(image_patch_layout, image_grid_thw)


def _num_rows(pixel_values: torch.Tensor, config: Any) -> int:
    """Patches in `pixel_values`, of any shape that the tower of this vision config takes for rows."""
    return pixel_values.numel() // (config.in_channels * config.temporal_patch_size * config.patch_size**2)


LOST_LAYOUT = (
    "pass everything the processor returned, or preprocess with patch_selection_method='off'. (transformers-apt, "
    "which is installed here, makes fewer patches of an image and says in image_patch_layout where they are; "
    "TRANSFORMERS_APT=0 in the environment switches that off for a whole process.)"
)
"""For a reader who may never have asked for a layout."""


def _refuse_mixed_scales(
    pixel_values: torch.Tensor | None, image_grid_thw: torch.Tensor | None, vision_config: Any
) -> None:
    """Refuse pixels that come without a layout and are not one row per cell of their grids.

    Raises:
        InvalidLayoutError: the layout was lost on the way here.
    """
    if not isinstance(pixel_values, torch.Tensor) or image_grid_thw is None or torch.compiler.is_compiling():
        return
    grids = torch.as_tensor(image_grid_thw)
    expected, found = int(grids.prod(-1).sum()), _num_rows(pixel_values, vision_config)
    if found != expected:
        raise InvalidLayoutError(
            f"pixel_values has {found} rows but image_grid_thw {grids.tolist()} has {expected} patches and there is "
            f"no image_patch_layout; {LOST_LAYOUT}"
        )


def _refuse_layout_without_pixels(given: dict[str, Any], image_token_id: int) -> None:
    """Refuse a prompt with images whose layout came along and whose pixels did not.

    Raises:
        InvalidLayoutError: the pixels were lost on the way here.
    """
    ids = given.get("input_ids")
    features = (given.get("mm_encoder_outputs") or {}).get("image")
    if ids is None or features is not None or any(given.get(x) is not None for x in ("pixel_values", "inputs_embeds")):
        return
    if not torch.compiler.is_compiling() and bool((ids == image_token_id).any()):
        raise InvalidLayoutError(
            "image_patch_layout without pixel_values, for a prompt with image placeholders; pass everything the "
            "processor returned (or mm_encoder_outputs, for images that are encoded already)"
        )


@merge_with_config_defaults
@capture_outputs
def mixed_scale_tower(
    self: Any, hidden_states: torch.Tensor, layouts: list[PatchLayout], **kwargs: Any
) -> BaseModelOutputWithPooling:
    """Upstream's tower, with each patch at its own centre and coarse rows repeated in front of the merger.

    `hidden_states (n, c·t·p·p)` -> `last_hidden_state (n, d)`, `pooler_output (t, hidden_size)`
    """
    precomputed = sorted(set(kwargs) & {"position_ids", "cu_seqlens", "max_seqlen"})
    if precomputed:
        raise ValueError(
            f"image_{precomputed[0]} with image_patch_layout: what it holds follows from the layout; leave it out, or "
            "preprocess with patch_selection_method='off'"
        )
    hidden_states = self.patch_embed(hidden_states)
    device = hidden_states.device
    centres = torch.cat([layout.centres for layout in layouts]).to(device)
    position_embeddings = self.rotary_pos_emb(hidden_states, centres)
    # one attention segment per image
    lengths = torch.tensor([layout.num_patches for layout in layouts], dtype=torch.int32, device="cpu")
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    max_seqlen = get_max_seqlen(cu_seqlens, self.config)
    cu_seqlens = cu_seqlens.to(device)
    for block in self.blocks:
        hidden_states = block(
            hidden_states,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    starts = F.pad(lengths.cumsum(0), (1, 0)).tolist()
    index = torch.cat([layout.merger_index + start for layout, start in zip(layouts, starts, strict=False)])
    merged = self.merger(hidden_states[index.to(device)])
    return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=merged)


class Qwen2VisionTransformerPretrainedModel(Overlay):
    """Modifications:

    - `forward` takes `patch_layout`, the concatenated layouts or a list of checked ones, and then runs
      `mixed_scale_tower`; without it, pixels that are not one row per cell of the grid are refused instead of being
      read at wrong places.
    """

    target = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VisionTransformerPretrainedModel"

    @overrides("hidden_states", "grid_thw")
    def forward(
        upstream: Any,
        self: Any,
        hidden_states: torch.Tensor,
        grid_thw: torch.Tensor,
        *,
        patch_layout: torch.Tensor | list[PatchLayout] | None = None,
        **kwargs: Any,
    ) -> Any:
        if patch_layout is None:
            _refuse_mixed_scales(hidden_states, grid_thw, self.config)
            return upstream(self, hidden_states, grid_thw, **kwargs)
        if not isinstance(patch_layout, list):
            patch_layout = unpack(patch_layout, grid_thw, _num_rows(hidden_states, self.config))
        return mixed_scale_tower(self, hidden_states, patch_layout, **kwargs)


@accepts_precomputed_kwargs(modality="image")
@can_return_tuple
def mixed_scale_image_features(
    self: Any, pixel_values: torch.Tensor, image_grid_thw: Any, image_patch_layout: torch.Tensor, **kwargs: Any
) -> Any:
    """Upstream's `get_image_features` for a mixed-scale sequence: `pooler_output` holds one tensor per image."""
    layouts = unpack(image_patch_layout, image_grid_thw, _num_rows(pixel_values, self.config.vision_config))
    pixel_values = pixel_values.type(self.visual.dtype)
    outputs = self.visual(pixel_values, grid_thw=image_grid_thw, patch_layout=layouts, **kwargs)
    tokens = [layout.num_language_tokens for layout in layouts]
    outputs.pooler_output = torch.split(outputs.pooler_output, tokens)
    return outputs


class Qwen2VLModel(Overlay):
    """Modifications:

    - `get_image_features` takes `image_patch_layout` (`generate` reads its signature) and hands it to the tower;
    - `get_rope_index` and `get_vision_position_ids` place each language token at its top-left 28-px cell; where
      upstream fails for want of placeholders, the error says that a layout may be missing;
    - `forward` takes `image_patch_layout` and computes position ids from it where upstream would from the grid; with a
      layout but neither pixels nor features it would read the bare placeholders, and refuses to.
    """

    target = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VLModel"

    @overrides("pixel_values", "image_grid_thw")
    def get_image_features(
        upstream: Any,
        self: Any,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        *,
        image_patch_layout: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if image_patch_layout is not None:
            return mixed_scale_image_features(self, pixel_values, image_grid_thw, image_patch_layout, **kwargs)
        return upstream(self, pixel_values, image_grid_thw, **kwargs)

    @overrides("start_position", "grid_thw", "temp_merge_size", "spatial_merge_size", "time_interval", "device")
    def get_vision_position_ids(
        upstream: Any,
        self: Any,
        start_position: int,
        grid_thw: Any,
        temp_merge_size: int = 1,
        spatial_merge_size: int = 1,
        time_interval: float | torch.Tensor = 1.0,
        device: str | torch.device | None = None,
    ) -> torch.Tensor:
        if not isinstance(grid_thw, MixedScaleGrid):
            sizes = (temp_merge_size, spatial_merge_size, time_interval)
            return upstream(self, start_position, grid_thw, *sizes, device=device)
        cells = grid_thw.layout.language_cells  # (t, 2)
        positions = torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1).T  # (3, t): temporal, height, width
        return positions.to(device) + start_position

    @overrides("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    def get_rope_index(
        upstream: Any,
        self: Any,
        input_ids: torch.Tensor,
        mm_token_type_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        image_patch_layout: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if image_patch_layout is None:
            # `generate` computes positions before it encodes the images, and hands on everything it has
            _refuse_mixed_scales(kwargs.get("pixel_values"), image_grid_thw, self.config.vision_config)
            given = (input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask)
            try:
                return upstream(self, *given, **kwargs)
            except Exception as error:
                found = _num_placeholders(mm_token_type_ids, attention_mask)
                if image_grid_thw is None or found >= _num_merge_cells(image_grid_thw):
                    raise
                raise InvalidLayoutError(
                    f"the prompt has {found} image placeholders but image_grid_thw "
                    f"{[tuple(map(int, grid)) for grid in image_grid_thw]} makes {_num_merge_cells(image_grid_thw)} "
                    f"and there is no image_patch_layout. Unless the prompt was cut: {LOST_LAYOUT}"
                ) from error
        layouts = unpack(image_patch_layout, image_grid_thw)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        expected = sum(layout.num_language_tokens for layout in layouts)
        found = _num_placeholders(mm_token_type_ids, mask)
        if found != expected:
            # TRL looks for upstream's words, the first ones here, to say that max_length cut the prompt
            raise InvalidLayoutError(
                f"Image features and image tokens do not match, tokens: {found}, features: {expected}: the prompt has "
                f"{found} image placeholders but image_patch_layout makes {expected} language tokens; "
                "pass the input_ids and the image_patch_layout of the same processor call"
            )
        grids = [MixedScaleGrid.of(layout) for layout in layouts]
        position_ids, deltas = upstream(
            self, input_ids, mm_token_type_ids, grids, video_grid_thw, attention_mask, **kwargs
        )
        return position_ids, deltas + _missing_tail(mm_token_type_ids, mask, layouts)

    @overrides("input_ids", "position_ids", "image_grid_thw", "video_grid_thw", "attention_mask", CACHE_NAMES,
               "mm_token_type_ids")  # fmt: skip
    def forward(
        upstream: Any, self: Any, *args: Any, image_patch_layout: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if image_patch_layout is None:
            return upstream(self, *args, **kwargs)
        given = inspect.signature(upstream).bind_partial(self, *args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        past = cache_in(given)
        starts_anew = self.rope_deltas is None or past is None or past.get_seq_length() == 0
        if starts_anew:
            _refuse_layout_without_pixels(given, self.config.image_token_id)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        if given.get("position_ids") is None and starts_anew and all(given.get(name) is not None for name in names):
            given["position_ids"], self.rope_deltas = self.get_rope_index(
                **{name: given[name] for name in names},
                video_grid_thw=given.get("video_grid_thw"),
                attention_mask=given.get("attention_mask"),
                image_patch_layout=image_patch_layout,
            )
        del given["self"]
        return upstream(self, **given, image_patch_layout=image_patch_layout)


def _num_placeholders(mm_token_type_ids: torch.Tensor, mask: torch.Tensor | None) -> int:
    is_image = mm_token_type_ids == 1
    return int((is_image if mask is None else is_image & mask.bool()).sum())


def _num_merge_cells(grids: Any) -> int:
    """Placeholders that upstream makes for these images."""
    return sum(int(torch.as_tensor(grid).prod()) for grid in grids) // MERGE_SIZE**2


def _missing_tail(mm_token_type_ids: torch.Tensor, mask: torch.Tensor, layouts: list[PatchLayout]) -> torch.Tensor:
    """`(batch, 1)` what a prompt that *ends* in an image lacks to continue at upstream's position.

    Upstream continues after the largest position seen. A coarse last row starts above the grid's last cell, so that
    would be too early.
    """
    tails, image = [], -1
    for types, kept in zip(mm_token_type_ids, mask.bool(), strict=True):
        is_image = F.pad((types[kept] == 1).cpu(), (1, 0))
        image += int((is_image[1:] & ~is_image[:-1]).sum())
        last = layouts[image] if bool(is_image[-1]) else None
        tails.append(0 if last is None else last.next_position - 1 - int(last.language_cells.max()))
    return torch.tensor(tails, device=mm_token_type_ids.device).unsqueeze(1)


class Qwen2VLForConditionalGeneration(Overlay):
    """Modifications:

    - `forward` names `image_patch_layout`, which `generate` demands of every input, and passes it on;
    - `_validate_model_kwargs` takes it also where somebody's own `forward` does not name it, but takes `**kwargs`;
    - `_prepare_position_ids_for_generation`, where `generate` still has all inputs, refuses a layout without pixels.
    """

    target = "transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VLForConditionalGeneration"

    @overrides("model_kwargs")
    def _validate_model_kwargs(upstream: Any, self: Any, model_kwargs: dict[str, Any]) -> None:
        parameters = inspect.signature(self.forward).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            model_kwargs = {name: value for name, value in model_kwargs.items() if name != LAYOUT_KEY}
        upstream(self, model_kwargs)

    @overrides("inputs_tensor", "model_kwargs")
    def _prepare_position_ids_for_generation(
        upstream: Any, self: Any, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        past = cache_in(model_kwargs)
        starts_anew = past is None or past.get_seq_length() == 0
        is_ids = inputs_tensor.ndim == 2 and not inputs_tensor.is_floating_point()
        if model_kwargs.get("image_patch_layout") is not None and starts_anew and is_ids:
            _refuse_layout_without_pixels({**model_kwargs, "input_ids": inputs_tensor}, self.config.image_token_id)
        return upstream(self, inputs_tensor, model_kwargs)

    @overrides()
    def forward(
        upstream: Any, self: Any, *args: Any, image_patch_layout: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if image_patch_layout is not None:
            kwargs["image_patch_layout"] = image_patch_layout
        return upstream(self, *args, **kwargs)
