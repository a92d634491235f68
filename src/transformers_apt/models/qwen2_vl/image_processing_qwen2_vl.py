"""Overlay of `transformers.models.qwen2_vl.image_processing_qwen2_vl` (the torchvision backend)."""

from typing import Any

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.models.qwen2_vl import image_processing_qwen2_vl as upstream_module

from transformers_apt.models.qwen2_vl import selection
from transformers_apt.overlay import Overlay, overrides


class Qwen2VLImageProcessorKwargs(upstream_module.Qwen2VLImageProcessorKwargs, selection.SelectionKwargs, total=False):  # type: ignore[misc]
    """Upstream's arguments and the selection settings."""


class Qwen2VLImageProcessor(Overlay):
    """Modifications:

    - four settings, as class defaults and `valid_kwargs`: constructor, attribute and call take them, and
      `save_pretrained` keeps them;
    - `_standardize_kwargs` refuses settings that cannot be used, before any image is read;
    - `_preprocess` selects patches after resizing, and normalises only those that are kept; it returns
      `image_patch_layout` beside `pixel_values`. With `"off"` it is upstream's own.
    - `last_budget_info`, what `budget` did to each image of this thread's last call.

    `get_number_of_image_patches` stays upstream's: exact for `"off"`, an upper bound for the other methods.
    """

    target = "transformers.models.qwen2_vl.image_processing_qwen2_vl:Qwen2VLImageProcessor"

    valid_kwargs = Qwen2VLImageProcessorKwargs
    patch_selection_method = selection.DEFAULTS["patch_selection_method"]
    alpha = selection.DEFAULTS["alpha"]
    importance_method = selection.DEFAULTS["importance_method"]
    thresholds = selection.DEFAULTS["thresholds"]
    last_budget_info = selection.last_budget_info

    @overrides()
    def _standardize_kwargs(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        selection.check_selection(**{name: kwargs.get(name) for name in selection.DEFAULTS})
        return upstream(self, *args, **kwargs)

    @overrides(
        "images", "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
        "image_std", "patch_size", "temporal_patch_size", "merge_size", "disable_grouping", "return_tensors",
    )  # fmt: skip
    def _preprocess(
        upstream: Any,
        self: Any,
        images: list[torch.Tensor],
        **kwargs: Any,
    ) -> BatchFeature:
        settings = selection.take_selection(self, kwargs)
        if settings["patch_selection_method"] == selection.OFF:
            selection.remember_budget_info(self, [None] * len(images))
            return upstream(self, images, **kwargs)

        patch_size, merge_size = kwargs["patch_size"], kwargs["merge_size"]
        if kwargs["do_resize"]:
            batches, order = group_images_by_shape(images, disable_grouping=kwargs["disable_grouping"])
            resized = {
                shape: self.resize(
                    images=batch, size=kwargs["size"], resample=kwargs["resample"], factor=patch_size * merge_size
                )
                for shape, batch in batches.items()
            }
            images = reorder_images(resized, order)

        grey_scale = selection.grey_scale_of(kwargs["do_rescale"], kwargs["rescale_factor"])
        batches, order = group_images_by_shape(images, disable_grouping=kwargs["disable_grouping"])
        rows, layouts, infos = {}, {}, {}
        for shape, batch in batches.items():
            patches, layouts[shape], infos[shape] = selection.select_and_pack(
                batch, settings, patch_size, merge_size, grey_scale
            )
            patches = self.rescale_and_normalize(
                patches,
                kwargs["do_rescale"],
                kwargs["rescale_factor"],
                kwargs["do_normalize"],
                kwargs["image_mean"],
                kwargs["image_std"],
            )
            packed = selection.as_rows(patches, kwargs["temporal_patch_size"])
            rows[shape] = packed.split([layout.num_patches for layout in layouts[shape]])

        ordered_layouts = reorder_images(layouts, order)
        selection.remember_budget_info(self, reorder_images(infos, order))
        data = {
            "pixel_values": torch.cat(reorder_images(rows, order)),
            "image_grid_thw": torch.tensor([[1, *layout.grid] for layout in ordered_layouts], dtype=torch.long),
            selection.LAYOUT_KEY: selection.pack_layouts(ordered_layouts),
        }
        return BatchFeature(data=data, tensor_type=kwargs["return_tensors"])
