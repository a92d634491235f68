"""Layouts between processor and model: how they are read, how they travel, and what is refused.

Axis legend: `n` patches of all images, `t` language tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch

from apt_code.patch_layout import MERGE_SIZE, InvalidLayoutError, PatchLayout

LAYOUT_KEY = "image_patch_layout"
"""The key of the concatenated layouts, `(n, 3)` int64, in what a processor returns."""

COUNTS_KEY = "image_patch_counts"
"""The key of the patches of each image, `(images,)` int64. Outputs of earlier releases lack it: their layouts leave no
cell out, so that they are cut by area."""

PARTS_KEY = "image_patch_parts"
"""The key of the base patches that each coarse patch covers, `(sum of size² over the coarse patches, c·t·p·p)`: of one
coarse patch after the other, as they stand in the layouts, each row by row. Made only where `patch_parts` asks for it.
"""

KEYS = (LAYOUT_KEY, COUNTS_KEY, PARTS_KEY)
"""What a processor may return of images beside upstream's keys."""

LOST_LAYOUT = (
    "pass everything the processor returned, or preprocess with patch_selection_method='off'. (transformers-apt, "
    "which is installed here, makes fewer patches of an image and says in image_patch_layout where they are; "
    "TRANSFORMERS_APT=0 in the environment switches that off for a whole process.)"
)
"""For a reader who may never have asked for a layout."""


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
    image_patch_layout: torch.Tensor,
    image_grid_thw: torch.Tensor | None,
    image_patch_counts: torch.Tensor | None = None,
    num_rows: int | None = None,
) -> list[PatchLayout]:
    """One checked layout per image, where known for `num_rows` rows of pixels. Keys as in what a processor returns.

    Raises:
        InvalidLayoutError: the layouts do not tile the grids, or are not those of these pixels.
    """
    if image_grid_thw is None:
        raise InvalidLayoutError("image_patch_layout without image_grid_thw; pass everything the processor returned")
    for name, value, shape in (
        (LAYOUT_KEY, image_patch_layout, "(num_patches, 3)"),
        (COUNTS_KEY, image_patch_counts, "(num_images,)"),
    ):
        if name == COUNTS_KEY and value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise InvalidLayoutError(
                f"{name} is a {type(value).__name__}, expected an int64 tensor of shape {shape}; call the processor "
                "with return_tensors='pt'"
            )
        if value.is_meta:
            raise InvalidLayoutError(
                f"{name} is on the device 'meta', which holds no values; expected it on a real one: pass what the "
                "processor returned"
            )
    if num_rows is not None and num_rows != len(image_patch_layout):
        raise InvalidLayoutError(
            f"pixel_values has {num_rows} rows and image_patch_layout {len(image_patch_layout)}, expected "
            "one row per patch in both; pass the two that came from the same processor call"
        )
    try:
        return PatchLayout.unpack(image_patch_layout, image_grid_thw, image_patch_counts)
    except InvalidLayoutError as error:  # a reader who never asked for a layout must understand it
        raise InvalidLayoutError(
            f"{error}. (image_patch_layout is that of transformers-apt's adaptive patches, which "
            "patch_selection_method='off' turns off.)"
        ) from None


def num_rows(pixel_values: torch.Tensor, vision_config: Any, name: str = "pixel_values") -> int:
    """Patches in `pixel_values`, of any shape that the tower of this vision config takes for rows.

    Args:
        pixel_values: or other rows of pixels.
        vision_config: of the model.
        name: the key of the rows, for the error.

    Raises:
        InvalidLayoutError: the rows are those of another patch size.
    """
    size = vision_config.patch_size
    row = vision_config.in_channels * vision_config.temporal_patch_size * size**2
    found = pixel_values.shape[1] if pixel_values.ndim == 2 else row
    if found and found % row and row % found:  # the tower takes whole rows and equal parts of them
        raise InvalidLayoutError(
            f"{name} has rows of {found} values, expected {row}, a patch of {size}×{size} px in "
            f"{vision_config.temporal_patch_size} frames: another family's processor made them; load the processor "
            "from the model's own checkpoint"
        )
    return pixel_values.numel() // row


def num_placeholders(mm_token_type_ids: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Image placeholders of a prompt that the mask keeps."""
    is_image = mm_token_type_ids == 1
    return int((is_image if mask is None else is_image & mask.bool()).sum())


def num_merge_cells(grids: Any) -> int:
    """Placeholders that upstream makes for these images."""
    return sum(int(torch.as_tensor(grid).prod()) for grid in grids) // MERGE_SIZE**2


# -------------------------------------------------------------------- refusals


def refuse_mixed_scales(
    pixel_values: torch.Tensor | None,
    image_grid_thw: torch.Tensor | None,
    vision_config: Any,
    position_ids: torch.Tensor | None = None,
) -> None:
    """Refuse pixels that come without a layout and are not one row per cell of their grids.

    Args:
        pixel_values, image_grid_thw: as a model takes them.
        vision_config: of the model.
        position_ids: `(patches, 2)` where they are computed already. Then the values of the grids are not read, which
            may lie on a device that should not be waited for.

    Raises:
        InvalidLayoutError: the layout was lost on the way here.
    """
    if not isinstance(pixel_values, torch.Tensor) or image_grid_thw is None or torch.compiler.is_compiling():
        return
    found = num_rows(pixel_values, vision_config)
    if position_ids is not None:
        expected, grids = len(position_ids), "with its positions"
    else:
        values = torch.as_tensor(image_grid_thw)
        expected, grids = int(values.prod(-1).sum()), str(values.tolist())
    if found != expected:
        raise InvalidLayoutError(
            f"pixel_values has {found} rows but image_grid_thw {grids} has {expected} patches and there is "
            f"no image_patch_layout; {LOST_LAYOUT}"
        )


def refuse_lone(image_patch_counts: torch.Tensor | None, image_patch_parts: torch.Tensor | None) -> None:
    """Refuse what came without the layout that says how to cut it.

    Raises:
        InvalidLayoutError: there is one of them.
    """
    for name, value in ((COUNTS_KEY, image_patch_counts), (PARTS_KEY, image_patch_parts)):
        if value is not None:
            raise InvalidLayoutError(f"{name} without image_patch_layout; {LOST_LAYOUT}")


def refuse_missing_placeholders(mm_token_type_ids: torch.Tensor, mask: torch.Tensor | None, grids: Any) -> None:
    """Say of a prompt for which upstream could not make positions that its placeholders are too few, if so.

    Raises:
        InvalidLayoutError: the layout was lost on the way here, or the prompt was cut.
    """
    found = num_placeholders(mm_token_type_ids, mask)
    if grids is not None and found < num_merge_cells(grids):
        raise InvalidLayoutError(
            f"the prompt has {found} image placeholders but image_grid_thw "
            f"{[tuple(map(int, grid)) for grid in grids]} makes {num_merge_cells(grids)} and there is no "
            f"image_patch_layout. Unless the prompt was cut: {LOST_LAYOUT}"
        )


def refuse_other_placeholders(
    mm_token_type_ids: torch.Tensor, mask: torch.Tensor | None, layouts: list[PatchLayout]
) -> None:
    """Refuse a prompt whose image placeholders are not as many as the layouts have language tokens.

    Raises:
        InvalidLayoutError: so it is.
    """
    expected = sum(layout.num_language_tokens for layout in layouts)
    found = num_placeholders(mm_token_type_ids, mask)
    if found != expected:
        # TRL looks for upstream's words, the first ones here, to say that max_length cut the prompt
        raise InvalidLayoutError(
            f"Image features and image tokens do not match, tokens: {found}, features: {expected}: the prompt has "
            f"{found} image placeholders but image_patch_layout makes {expected} language tokens; "
            "pass the input_ids and the image_patch_layout of the same processor call"
        )


def refuse_layout_without_pixels(given: Mapping[str, Any], image_token_id: int) -> None:
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
