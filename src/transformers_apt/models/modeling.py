"""Overlays of the model classes, as every family needs them: features, positions, and the way through `generate`."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils.generic import accepts_precomputed_kwargs, can_return_tuple

from apt_code.patch_layout import PatchLayout
from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models.layouts import (
    COUNTS_KEY,
    KEYS,
    LAYOUT_KEY,
    PARTS_KEY,
    MixedScaleGrid,
    num_rows,
    refuse_layout_without_pixels,
    refuse_lone,
    refuse_missing_placeholders,
    refuse_mixed_scales,
    refuse_other_placeholders,
    unpack,
)
from transformers_apt.models.upstream import CACHE_NAMES, cache_in


@accepts_precomputed_kwargs(modality="image")
@can_return_tuple
def mixed_scale_image_features(
    self: Any,
    pixel_values: torch.Tensor,
    image_grid_thw: Any,
    image_patch_layout: torch.Tensor,
    image_patch_counts: torch.Tensor | None,
    image_patch_parts: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """Upstream's `get_image_features` for a mixed-scale sequence: `pooler_output` holds one tensor per image, and so
    does each of `deepstack_features` where there are any."""
    rows = num_rows(pixel_values, self.config.vision_config)
    layouts = unpack(image_patch_layout, image_grid_thw, image_patch_counts, rows)
    pixel_values = pixel_values.type(self.visual.dtype)
    outputs = self.visual(
        pixel_values,
        grid_thw=image_grid_thw,
        patch_layout=layouts,
        patch_parts=image_patch_parts,
        **{**kwargs, "return_dict": True},
    )
    tokens = [layout.num_language_tokens for layout in layouts]
    outputs.pooler_output = torch.split(outputs.pooler_output, tokens)
    if getattr(outputs, "deepstack_features", None) is not None:
        outputs.deepstack_features = [torch.split(features, tokens) for features in outputs.deepstack_features]
    return outputs


class MultimodalModel(Overlay):
    """Modifications:

    - `get_image_features` takes `image_patch_layout`, `image_patch_counts` and `image_patch_parts` (`generate` reads
      its signature), and hands the layouts and the parts to the tower;
    - `get_rope_index` and `get_vision_position_ids` place each language token at its top-left merge cell; where
      upstream fails for want of placeholders, the error says that a layout may be missing;
    - `forward` takes all three, and computes position ids from them where upstream would from the grid; with a
      layout but neither pixels nor features it would read the bare placeholders, and refuses to.
    """

    @overrides("pixel_values", "image_grid_thw")
    def get_image_features(
        upstream: Any,
        self: Any,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        *,
        image_patch_layout: torch.Tensor | None = None,
        image_patch_counts: torch.Tensor | None = None,
        image_patch_parts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if image_patch_layout is not None:
            mixed = (image_grid_thw, image_patch_layout, image_patch_counts, image_patch_parts)
            return mixed_scale_image_features(self, pixel_values, *mixed, **kwargs)
        refuse_lone(image_patch_counts, image_patch_parts)
        return upstream(self, pixel_values, image_grid_thw, **kwargs)

    @overrides("start_position", "grid_thw", "device")
    def get_vision_position_ids(
        upstream: Any, self: Any, start_position: int, grid_thw: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if not isinstance(grid_thw, MixedScaleGrid):
            return upstream(self, start_position, grid_thw, *args, **kwargs)
        given = inspect.signature(upstream).bind(self, start_position, grid_thw, *args, **kwargs).arguments
        device, cells = given.get("device"), grid_thw.layout.language_cells  # (t, 2)
        positions = torch.cat([torch.zeros_like(cells[:, :1]), cells], dim=1).T  # (3, t): temporal, height, width
        return positions.to(device) + start_position

    @overrides("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    def get_rope_index(
        upstream: Any,
        self: Any,
        *args: Any,
        image_patch_layout: torch.Tensor | None = None,
        image_patch_counts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = inspect.signature(upstream).bind(self, *args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        del given["self"]
        types, mask, grids = given["mm_token_type_ids"], given.get("attention_mask"), given.get("image_grid_thw")
        if image_patch_layout is None:
            refuse_lone(image_patch_counts, None)
            # `generate` computes positions before it encodes the images, and hands on everything it has
            refuse_mixed_scales(given.get("pixel_values"), grids, self.config.vision_config)
            try:
                return upstream(self, **given)
            except Exception:
                if types is not None:
                    refuse_missing_placeholders(types, mask, grids)
                raise
        layouts = unpack(image_patch_layout, grids, image_patch_counts)
        refuse_other_placeholders(types, mask, layouts)
        given["image_grid_thw"] = [MixedScaleGrid.of(layout) for layout in layouts]
        position_ids, deltas = upstream(self, **given)
        return position_ids, deltas + _missing_tail(types, mask, layouts)

    @overrides("input_ids", "position_ids", "image_grid_thw", "attention_mask", CACHE_NAMES, "mm_token_type_ids")
    def forward(
        upstream: Any,
        self: Any,
        *args: Any,
        image_patch_layout: torch.Tensor | None = None,
        image_patch_counts: torch.Tensor | None = None,
        image_patch_parts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if image_patch_layout is None:
            refuse_lone(image_patch_counts, image_patch_parts)
            return upstream(self, *args, **kwargs)
        mixed = _present(image_patch_layout, image_patch_counts)
        given = inspect.signature(upstream).bind_partial(self, *args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        past = cache_in(given)
        starts_anew = self.rope_deltas is None or past is None or past.get_seq_length() == 0
        if starts_anew:
            refuse_layout_without_pixels(given, self.config.image_token_id)
        needed = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        if given.get("position_ids") is None and starts_anew and all(given.get(name) is not None for name in needed):
            names = set(inspect.signature(self.get_rope_index).parameters) & set(given)
            given["position_ids"], self.rope_deltas = self.get_rope_index(
                **{name: given[name] for name in names}, **mixed
            )
        del given["self"]
        return upstream(self, **given, **mixed, **_present(None, None, image_patch_parts))


def _present(*values: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Of what a processor returned under `KEYS`, in their order, what is there, by its name."""
    return {name: value for name, value in zip(KEYS, values, strict=False) if value is not None}


def _missing_tail(
    mm_token_type_ids: torch.Tensor, mask: torch.Tensor | None, layouts: list[PatchLayout]
) -> torch.Tensor:
    """`(batch, 1)` what a prompt that *ends* in an image lacks to continue at upstream's position.

    Upstream continues after the largest position seen. A coarse last row starts above the grid's last cell, so that
    would be too early.
    """
    tails, image = [], -1
    mask = torch.ones_like(mm_token_type_ids) if mask is None else mask
    for types, kept in zip(mm_token_type_ids, mask.bool(), strict=True):
        is_image = F.pad((types[kept] == 1).cpu(), (1, 0))
        image += int((is_image[1:] & ~is_image[:-1]).sum())
        last = layouts[image] if bool(is_image[-1]) else None
        tails.append(0 if last is None else last.next_position - 1 - int(last.language_cells.max()))
    return torch.tensor(tails, device=mm_token_type_ids.device).unsqueeze(1)


class ForConditionalGeneration(Overlay):
    """Modifications:

    - `forward` names `image_patch_layout`, `image_patch_counts` and `image_patch_parts`, as `generate` demands of all
      inputs, and passes them on;
    - `_validate_model_kwargs` takes them also where somebody's own `forward` does not name them, but takes `**kwargs`;
    - `_prepare_position_ids_for_generation`, where `generate` still has all inputs, refuses a layout without pixels;
    - `_expand_inputs_for_generation` repeats a layout and its parts image by image, as the grids are, and not row by
      row.
    """

    @overrides("expand_size")
    def _expand_inputs_for_generation(
        upstream: Any, self: Any, expand_size: int = 1, *args: Any, **model_kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        layout, grids = model_kwargs.get(LAYOUT_KEY), model_kwargs.get("image_grid_thw")
        input_ids, expanded = upstream(self, expand_size, *args, **model_kwargs)
        if layout is not None and grids is not None:  # else the images are encoded, and nobody looks at layouts again
            images = unpack(layout, grids, model_kwargs.get(COUNTS_KEY))
            expanded[LAYOUT_KEY] = torch.cat([image.patches.repeat(expand_size, 1) for image in images])
            if model_kwargs.get(PARTS_KEY) is not None:
                parts = model_kwargs[PARTS_KEY].split([image.parts.num_patches for image in images])
                expanded[PARTS_KEY] = torch.cat([rows.repeat(expand_size, 1) for rows in parts])
        return input_ids, expanded

    @overrides("model_kwargs")
    def _validate_model_kwargs(upstream: Any, self: Any, model_kwargs: dict[str, Any]) -> None:
        parameters = inspect.signature(self.forward).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in KEYS}
        upstream(self, model_kwargs)

    @overrides("inputs_tensor", "model_kwargs")
    def _prepare_position_ids_for_generation(
        upstream: Any, self: Any, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        past = cache_in(model_kwargs)
        starts_anew = past is None or past.get_seq_length() == 0
        is_ids = inputs_tensor.ndim == 2 and not inputs_tensor.is_floating_point()
        if model_kwargs.get(LAYOUT_KEY) is not None and starts_anew and is_ids:
            refuse_layout_without_pixels({**model_kwargs, "input_ids": inputs_tensor}, self.config.image_token_id)
        return upstream(self, inputs_tensor, model_kwargs)

    @overrides()
    def forward(
        upstream: Any,
        self: Any,
        *args: Any,
        image_patch_layout: torch.Tensor | None = None,
        image_patch_counts: torch.Tensor | None = None,
        image_patch_parts: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        mixed = _present(image_patch_layout, image_patch_counts, image_patch_parts)
        return upstream(self, *args, **kwargs, **mixed)
