"""What the image processor makes of an image, as pictures and numbers in a folder.

The resize and the tiling come out of `Qwen2VLImageProcessor` itself; nothing here decides either.
Axis legend: `c` channels, `H W` pixels, `h w` base grid, `n` patches, `m` merge size, `t` frames, `p` patch side.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

import transformers_apt
from apt_code.dropping import OFF, check_tolerance, inherited_pixels
from apt_code.entropy_utils import IMPORTANCE_METHODS
from apt_code.patch_layout import MERGE_SIZE, PatchLayout
from apt_code.patch_selection import PAD_VALUE
from apt_code.patch_tokenizer import PatchTokenizer
from apt_code.selection_settings import BUDGETED, check_thresholds
from apt_code.visualization import to_picture
from transformers_apt.engine.patching import BASE
from transformers_apt.models import settings as selection
from transformers_apt.models.families import NAMES, PUBLISHED, SUPPORTED, megapixels, no_such_checkpoint
from transformers_apt.models.reach import PATCH_SIZE
from transformers_apt.models.stats import image_layouts

SIZES = ("patch_size", "temporal_patch_size", "merge_size")
TOLERANCES = ("drop_tolerance", "predict_tolerance")
LONGEST_SIDE = 65_500
"""Of a JPEG file, in pixels."""


class UnusableImageError(ValueError):
    """This image cannot be shown; the next one may."""


@dataclass(frozen=True)
class View:
    """What the image processor made of one image.

    Attributes:
        original: the image before the resize, RGB; what was transparent is what the processor makes of it.
        resized: `(c, H, W)` uint8, after the processor's resize.
        layout: the tiling in the processor's output.
        maps: `{side in px: (rows, cols)}`, the importance of every cell.
        settings: all of them, as used: as `thresholds` for `v1` and `v2` one per coarse scale, `None` where the method
            has none; as `drop_tolerance` and `predict_tolerance` `None` where they are off.
        sizes: `patch_size`, `temporal_patch_size`, `merge_size`, `min_pixels` and `max_pixels` of the processor.
        upstream_grid: rows and columns of patches at the size that upstream takes; `fit` may take a smaller one.
        budget_info: the processor's `last_budget_info` of this image.
        notes: warnings, and arguments that the method ignores.
        inherited: `(c, H, W)` uint8, what stands for cells that were left out, as `reconstruct` takes it; `None` where
            none can be.
    """

    original: Image.Image
    resized: Tensor
    layout: PatchLayout
    maps: dict[int, Tensor]
    settings: dict[str, Any]
    sizes: dict[str, int]
    upstream_grid: tuple[int, int]
    budget_info: dict[str, int | float] | None
    notes: list[str]
    inherited: Tensor | None = None

    @property
    def patch_size(self) -> int:
        """Side of a base patch in pixels."""
        return self.sizes["patch_size"]


def load_processor(model: str | None = None, family: str | None = None, **given: Any) -> Qwen2VLImageProcessor:
    """The image processor of a checkpoint, or upstream's own, with the `given` sizes and selection settings.

    Of another family than Qwen2-VL's, patches are left as they are unless the checkpoint or `given` says otherwise.

    Args:
        model: folder or hub id; `None` for upstream's class.
        family: without a model, whose released checkpoints' patch size and limits to take; `None` for the class's.
        given: attributes to set; `None` leaves the processor's own.

    Raises:
        ValueError, TypeError: settings that cannot be used, or a family that reads no adaptive patches. OSError: no
            such checkpoint.
        IncompatibleTransformersError: adaptive patches cannot be switched on.
    """
    transformers_apt.apply()
    problem = model and no_such_checkpoint(model)
    if problem:
        raise ValueError(problem)
    if model is not None:
        family, processor = _family_of(model), Qwen2VLImageProcessor.from_pretrained(model)
    elif family is not None:
        published = PUBLISHED[family]
        size = {"shortest_edge": published.min_pixels, "longest_edge": published.max_pixels}
        processor = Qwen2VLImageProcessor(patch_size=published.patch_size, size=size)
    else:
        family, processor = BASE, Qwen2VLImageProcessor()
    for name, value in given.items():
        if value is not None:
            setattr(processor, name, value)
    for name in ("patch_size", "temporal_patch_size"):
        if getattr(processor, name) < 1:
            raise ValueError(
                f"{name}={getattr(processor, name)}: expected 1 or more, as checkpoints have 14 or 16, and 2"
            )
    if processor.merge_size != MERGE_SIZE:
        raise ValueError(
            f"merge_size={processor.merge_size}: expected {MERGE_SIZE}, all families', which adaptive patches need"
        )
    selection.check_selection(**{name: getattr(processor, name) for name in selection.DEFAULTS})
    if (family != BASE or processor.patch_size != PATCH_SIZE) and not selection.resolve(processor, {}).asked:
        processor.patch_selection_method = (
            selection.OFF
        )  # the default there, which an image processor alone may not know
    return processor


def _family_of(model: str) -> str:
    """The `model_type` of a checkpoint; Qwen2-VL's of a folder with nothing but an image processor.

    Raises:
        ValueError: one that reads no adaptive patches.
    """
    config, _ = PreTrainedConfig.get_config_dict(os.path.expanduser(model))
    family = str(config.get("model_type", BASE))
    if family not in NAMES:
        raise ValueError(
            f"{model} is of the family {family}: expected a checkpoint of one of those that read adaptive patches, "
            f"{SUPPORTED}"
        )
    return family


def describe_limit(processor: Qwen2VLImageProcessor, model: str | None, family: str | None) -> str:
    """To how much an image is resized at most, and who says so."""
    whose = "upstream's class default"
    if model is not None:
        whose = f"the limit of {model}"
    elif family is not None:
        whose = f"the limit of released {NAMES[family]} checkpoints"
    return f"at most {megapixels(processor.size['longest_edge'])}, {whose}"


def pick_device(name: str) -> str:
    """`'auto'`, `'cpu'` or `'cuda'` -> where to compute.

    Raises:
        ValueError: another name, or CUDA where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': no CUDA device is available here; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_picture(path: Path, *, formats: list[str] | None = None, max_pixels: int | None = None) -> Image.Image:
    """An image file, turned upright by its EXIF tag as transformers' own loaders do, otherwise as it is.

    Args:
        path: of the file.
        formats: Pillow's names of those that may be decoded; `None` for all it knows.
        max_pixels: the most that may be decoded, by what the file says of itself; `None` for any number.

    Raises:
        UnusableImageError: missing, not an image, damaged, or too large to show.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, also of a name that is too long
        raise UnusableImageError(f"{path} is not a file; expected an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as file:
                if max_pixels is not None and file.width * file.height > max_pixels:
                    raise UnusableImageError(
                        f"{path} is {file.width}×{file.height} px: expected at most {max_pixels / 1e6:g} megapixels"
                    )
                file.load()
                picture = ImageOps.exif_transpose(file)
    except UnusableImageError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise UnusableImageError(
            f"{path} cannot be read as an image ({error}); expected a JPEG, PNG or the like"
        ) from error
    if max(picture.size) > LONGEST_SIDE:
        raise UnusableImageError(
            f"{path} is {picture.width}×{picture.height} px: expected at most {LONGEST_SIDE:,} px a side"
        )
    return picture


def examine(picture: Image.Image, processor: Qwen2VLImageProcessor, device: str = "cpu", **settings: Any) -> View:
    """Run the image processor on one picture, and keep what it did.

    Args:
        picture: of any mode.
        processor: the image processor; its attributes are the settings.
        device: where to compute.
        settings: selection settings for this call, which win over the processor's.

    Raises:
        ValueError, TypeError: settings that cannot be used, or an image that the processor refuses.
    """
    selection.check_selection(**settings)
    resolved = selection.resolve(processor, {name: value for name, value in settings.items() if value is not None})
    settings = dict(resolved.values)
    sizes = {name: getattr(processor, name) for name in SIZES}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        output = processor(images=[picture], device=device, return_tensors="pt", **resolved.used)
    budget_info = (processor.last_budget_info or [None])[0]
    layout = _layout_of(output)
    plain: dict[str, Any] = {"patch_selection_method": selection.OFF, "do_rescale": False, "do_normalize": False}
    whole = processor(images=[picture], device=device, return_tensors="pt", **plain)
    height, width = whole["image_grid_thw"][0, 1:].tolist()
    if budget_info is not None and whole["image_grid_thw"].tolist() != output["image_grid_thw"].tolist():
        most = budget_info["max_pixels"]  # what `fit` chose
        plain["size"] = {"shortest_edge": min(processor.size["shortest_edge"], most), "longest_edge": most}
        whole = processor(images=[picture], device=device, return_tensors="pt", **plain)
    resized = _unpatchify(whole["pixel_values"], layout.grid, sizes)
    tokenizer = PatchTokenizer(
        num_scales=selection.NUM_SCALES,
        base_patch_size=sizes["patch_size"],
        thresholds=settings["thresholds"],
        importance_method=settings["importance_method"],
    )
    maps = {side: values[0].cpu() for side, values in tokenizer.compute_importance_maps(resized[None]).items()}
    tolerances = {name: check_tolerance(resolved.used.get(name), name) for name in TOLERANCES}
    used = {
        **settings,
        "thresholds": _thresholds_used(settings, tokenizer.thresholds, maps),
        **tolerances,
    }
    inherited = None
    if any(tolerance is not None for tolerance in tolerances.values()):
        if resolved.method == selection.FIT:  # which might choose another resolution
            (tiling,) = tokenizer.select_layouts(resized[None])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # they were said above
                everything = {**resolved.used, **dict.fromkeys(TOLERANCES, OFF)}
                tiling = _layout_of(processor(images=[picture], device=device, return_tensors="pt", **everything))
        inherited = inherited_pixels(resized, tiling, sizes["patch_size"], **tolerances)
    notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
    limits = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
    original = to_picture(processor.process_image(picture, do_convert_rgb=processor.do_convert_rgb))
    full = (height, width)
    return View(original, resized.cpu(), layout, maps, used, {**sizes, **limits}, full, budget_info, notes, inherited)


def _layout_of(output: Mapping[str, Tensor]) -> PatchLayout:
    return image_layouts({name: value.cpu() for name, value in output.items() if name != "pixel_values"})[0]


def _unpatchify(rows: Tensor, grid: tuple[int, int], sizes: dict[str, int]) -> Tensor:
    """The pixels behind upstream's `pixel_values` of one image, not rescaled: `(n, c·t·p·p)` -> `(c, H, W)` uint8."""
    axes = {"m": sizes["merge_size"], "k": sizes["merge_size"], "t": sizes["temporal_patch_size"]}
    axes |= {"p": sizes["patch_size"], "q": sizes["patch_size"], "h": grid[0] // sizes["merge_size"]}
    frames = rearrange(rows, "(h w m k) (c t p q) -> t c (h m p) (w k q)", **axes)
    return frames[0].to(torch.uint8)


def _thresholds_used(
    settings: dict[str, Any], fixed: Sequence[float], maps: dict[int, Tensor]
) -> dict[int, float] | None:
    """`{side in px: importance below which a cell stayed whole}`."""
    coarse = sorted(maps)[1:]
    if settings["patch_selection_method"] in ("v1", selection.FIT):
        return dict(zip(coarse, check_thresholds(fixed, len(coarse) + 1), strict=True))
    if settings["patch_selection_method"] == "v2":
        for side in reversed(coarse):  # the coarsest scale that has a complete cell, as `v2` itself
            complete = maps[side][maps[side] < PAD_VALUE]
            if len(complete):
                return dict.fromkeys(coarse, settings["alpha"] * float(complete.double().mean()))
    return None


def ignored_settings(method: str, given: dict[str, Any]) -> list[str]:
    """One sentence for every setting that was `given` (not `None`) and that `method` does not use."""
    unused = {"alpha", "thresholds", *TOLERANCES, "max_language_tokens"} - selection.USED_BY[method]
    names = [name for name in sorted(unused) if given.get(name) is not None]
    return [f"{name}={given[name]} is ignored by {method!r}" for name in names]


def stats_of(view: View, name: str, limit: str | None = None) -> dict[str, Any]:
    """Everything about a view that is a number, ready for JSON.

    Args:
        view: what `examine` returned.
        name: of the image file.
        limit: `describe_limit` of the processor.
    """
    layout, settings = view.layout, view.settings
    height, width = view.resized.shape[-2:]
    full = view.upstream_grid[0] * view.upstream_grid[1]
    by_px = {str(side): layout.patches_by_size.get(side // view.patch_size, 0) for side in view.maps}
    thresholds = settings["thresholds"]
    return {
        "image": name,
        "original_size": {"width": view.original.width, "height": view.original.height},
        "resized_size": {"width": width, "height": height},
        "processor": dict(view.sizes),
        "resize_limit": limit,
        "patch_selection_method": settings["patch_selection_method"],
        "alpha": settings["alpha"],
        "importance_method": settings["importance_method"],
        "importance_unit": IMPORTANCE_METHODS[settings["importance_method"]].unit,
        "thresholds": None
        if thresholds is None
        else {str(side): _number(value) for side, value in thresholds.items()},
        **{name: settings[name] for name in TOLERANCES},
        "max_language_tokens": settings["max_language_tokens"],
        "grid": {"h": layout.grid[0], "w": layout.grid[1]},
        "patches": {"full": full, "kept": layout.num_patches, "by_px": by_px},
        "retention": {
            "target": settings["alpha"] if settings["patch_selection_method"] in BUDGETED else None,
            "actual": layout.num_patches / full,
        },
        "language_tokens": {"full": full // MERGE_SIZE**2, "kept": layout.num_language_tokens},
        "dropped_cells": layout.dropped_cells,
        "importance": {str(side): _spread(values) for side, values in view.maps.items()},
        "budget_info": view.budget_info,
        "notes": list(view.notes),
    }


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)


def _spread(importance: Tensor) -> dict[str, int | float | None]:
    """Counts of a map's cells, and the range of the complete ones."""
    complete = importance[importance < PAD_VALUE].double()
    values = {name: round(float(getattr(complete, name)()), 6) if len(complete) else None for name in _SPREAD}
    return {"complete_cells": len(complete), "incomplete_cells": importance.numel() - len(complete), **values}


_SPREAD = ("min", "mean", "max")
