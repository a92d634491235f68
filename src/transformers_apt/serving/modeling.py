"""What the models of all families do beside vLLM's: rows to tokens, positions, LoRA, CUDA graphs.

Axis legend: `n` patches of all images, `t` language tokens of an image.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from transformers_apt.models.layouts import COUNTS_KEY, LAYOUT_KEY, unpack
from transformers_apt.models.tower import MixedSequence
from transformers_apt.serving import items


@dataclass(frozen=True)
class MixedScaleImages:
    """A batch of images as vLLM hands it to a model.

    Attributes:
        pixel_values: `(n, c·t·p·p)`, normalised.
        layouts: one per image.
    """

    pixel_values: Tensor
    layouts: list[PatchLayout]


class AdaptiveModel:
    """To be put in front of a family's model in vLLM. Modifications:

    - images that come with layouts (vLLM never batches them with others) go through `mixed_scale_tower`;
    - the tokens of an image have the positions of their merge cells;
    - LoRA on the tower is told how many rows an image has;
    - of CUDA graphs of the encoder only videos' are reported: an image's would be sized by its grid.
    """

    visual: Any

    @staticmethod
    def mixed_scale_tower(tower: Any, rows: Tensor, sequence: MixedSequence) -> Tensor:
        """The family's: `rows (n, c·t·p·p)` -> `(t of all images, width)`."""
        raise NotImplementedError

    def _parse_and_validate_image_input(self, **kwargs: Any) -> Any:
        layout, counts = kwargs.pop(LAYOUT_KEY, None), kwargs.pop(COUNTS_KEY, None)
        if layout is None:
            return super()._parse_and_validate_image_input(**kwargs)  # type: ignore[misc]
        pixel_values = kwargs["pixel_values"]
        return MixedScaleImages(pixel_values, unpack(layout, kwargs[items.GRIDS], counts, len(pixel_values)))

    def _process_image_input(self, image_input: Any) -> Any:
        if not isinstance(image_input, MixedScaleImages):
            return super()._process_image_input(image_input)  # type: ignore[misc]
        tower, layouts = self.visual, image_input.layouts
        rows = image_input.pixel_values.to(device=tower.device, dtype=tower.dtype)
        tokens = self.mixed_scale_tower(tower, rows, MixedSequence(layouts, tower.device))
        return tokens.split([layout.num_language_tokens for layout in layouts])

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """vLLM's own positions of the same prompt at full resolution, of which each image keeps those of its tokens'
        merge cells. So what follows an image continues where it would upstream, whatever else is in the prompt."""
        upstream = super().get_mrope_input_positions  # type: ignore[misc]
        layouts = [items.layout_of(feature.data) for feature in mm_features]
        if all(layout is None for layout in layouts):
            return upstream(input_tokens, mm_features)
        whole_tokens, whole_features, kept = list[int](), [], list[Tensor]()
        done = 0
        for feature, layout in sorted(
            zip(mm_features, layouts, strict=True), key=lambda pair: pair[0].mm_position.offset
        ):
            place = feature.mm_position
            kept.append(torch.arange(place.offset - done) + len(whole_tokens))
            whole_tokens += input_tokens[done : place.offset]
            start, done = len(whole_tokens), place.offset + place.length
            if layout is None:
                inside, length = torch.arange(place.length), place.length
                whole_tokens += input_tokens[place.offset : done]
            else:
                rows, cols = (side // MERGE_SIZE for side in layout.grid)
                inside, length = layout.language_cells @ torch.tensor([cols, 1]), rows * cols
                whole_tokens += input_tokens[place.offset : place.offset + 1] * length
            kept.append(inside + start)
            whole_features.append(replace(feature, mm_position=replace(place, offset=start, length=length)))
        kept.append(torch.arange(len(input_tokens) - done) + len(whole_tokens))
        whole_tokens += input_tokens[done:]
        positions, delta = upstream(whole_tokens, whole_features)
        return positions[:, torch.cat(kept)], delta + len(whole_tokens) - len(input_tokens)

    def get_mm_lora_token_counts(self, *, modality: str, mm_kwargs: Any, num_mm_embeds: int) -> tuple[int, int | None]:
        layout = items.layout_of(mm_kwargs) if modality == "image" else None
        if layout is not None:
            return layout.num_patches, num_mm_embeds
        return super().get_mm_lora_token_counts(  # type: ignore[misc]
            modality=modality, mm_kwargs=mm_kwargs, num_mm_embeds=num_mm_embeds
        )

    def get_encoder_cudagraph_config(self) -> Any:
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return replace(config, modalities=[modality for modality in config.modalities if modality != "image"])
