"""What an evaluation compares: the package's methods, and what a user could do without it.

`random` splits and downscaling are the baselines. Random splits tell whether the importance map matters; downscaling
is matched picture by picture: never smaller than what it is compared with, in vision patches or in language tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from benchmarks.quality.candidates import CANDIDATES

ALPHAS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
V2_ALPHAS = (0.5, 1.0, 1.5)
#: Root mean square errors in grey levels; a threshold on `upsample_mse` is the square.
RMS = (4, 6, 8, 12, 16, 24, 32)
#: Areas that a picture is scaled to before its tiling.
AREAS = (0.66, 0.45)
DROP = 2
#: Grey levels within which a neighbour predicts a cell that is left out too.
PREDICT = (4, 20)
#: The shares of upstream's language tokens that `fit` may use.
FITS = (0.45, 0.3)
IMPORTANCE = ("upsample_mse", "laplacian", "entropy")


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: unique.
        series: the curve it belongs to.
        images_kwargs: for the processor.
        area: the share of its pixels that each picture is scaled to first.
        like: for `downscale`, the name of the setting whose size it matches.
        equal: in what.
    """

    name: str
    series: str
    images_kwargs: dict[str, Any] = field(default_factory=dict)
    area: float = 1.0
    like: str | None = None
    equal: Literal["patches", "tokens"] | None = None


def _method(name: str, **options: Any) -> dict[str, Any]:
    return {"patch_selection_method": name, **options}


def standard(alphas: Sequence[float] = ALPHAS, importance: Sequence[str] = IMPORTANCE) -> list[Setting]:
    """The whole comparison, each setting after the one it is matched to."""
    found = [Setting("off", "off", _method("off")), Setting("v1 entropy [3, 2]", "v1 entropy", _method("v1"))]
    found += [Setting(f"v2 entropy {a}", "v2 entropy", _method("v2", alpha=a)) for a in V2_ALPHAS]
    for rms in RMS:
        options = {"importance_method": "upsample_mse", "thresholds": [float(rms**2)] * 2}
        found.append(Setting(f"v1 upsample_mse {rms} RMS", "v1 upsample_mse", _method("v1", **options)))
    for rms in RMS:  # a 56-px patch is the coarser one: let it lose less, or leave it out
        for title, share in (("56 px at half", 0.5), ("no 56 px", 0.0)):
            thresholds = [float(rms**2), (share * rms) ** 2]
            options = {"importance_method": "upsample_mse", "thresholds": thresholds}
            series = f"v1 upsample_mse, {title}"
            found.append(Setting(f"v1 upsample_mse {rms} RMS, {title}", series, _method("v1", **options)))
    found += _dropping()
    for alpha in alphas:
        for method in (*importance, *CANDIDATES):
            options = {"alpha": alpha, "importance_method": method}
            found.append(Setting(f"budget {method} {alpha}", f"budget {method}", _method("budget", **options)))
        options = {"alpha": alpha, "importance_method": importance[0]}
        joint = Setting(f"joint {importance[0]} {alpha}", f"joint {importance[0]}", _method("joint", **options))
        found.append(joint)
        if alpha < 1:
            budget = f"budget {importance[0]} {alpha}"  # `joint` has as many patches
            matches: tuple[tuple[str, str, Literal["patches", "tokens"]], ...] = (
                (f"downscale, patches of {alpha}", budget, "patches"),
                (f"downscale, tokens of {alpha}", budget, "tokens"),
                (f"downscale, tokens of joint {alpha}", joint.name, "tokens"),
            )
            found += [_downscale(*match) for match in matches]
    return found


def _dropping() -> list[Setting]:
    """What leaving cells out saves, alone and on smaller pictures, beside downscaling to as many language tokens."""
    whole = {"importance_method": "upsample_mse", "thresholds": [16.0, 16.0]}
    mse, dropped = "v1 upsample_mse 4 RMS", {"drop_tolerance": DROP}
    found = [Setting(f"{mse}, drop {DROP}", "v1 upsample_mse, dropping", _method("v1", **whole, **dropped))]
    for area in AREAS:
        name, series = f"{mse}, drop {DROP}, area {area}", "v1 upsample_mse, dropping, smaller"
        found.append(Setting(name, series, _method("v1", **whole, **dropped), area))
    for tolerance in PREDICT:
        options = {**whole, **dropped, "predict_tolerance": tolerance}
        name, series = f"{mse}, drop {DROP}, predict {tolerance}", "v1 upsample_mse, dropping predictable cells"
        found.append(Setting(name, series, _method("v1", **options)))
    strokes = {"importance_method": "upsample_l4", "thresholds": [50.0, 50.0]}
    found.append(
        Setting(f"v1 upsample_l4 50, drop {DROP}", "v1 upsample_l4, dropping", _method("v1", **strokes, **dropped))
    )
    budget = {"alpha": 0.3, "importance_method": "upsample_mse"}
    name, series = f"budget upsample_mse 0.3, drop {DROP}", "budget upsample_mse, dropping"
    found.append(Setting(name, series, _method("budget", **budget, **dropped)))
    found += [Setting(f"fit {share}", "fit", _method("fit", alpha=share, **whole, **dropped)) for share in FITS]
    # as many language tokens as upstream, and cells left out of those: what *where* questions lose by which
    small = _method("v1", importance_method="upsample_mse", thresholds=[16.0, 0.0])
    twins = [
        Setting(f"{mse}, 28 px only{rest}", "v1 upsample_mse, 28 px only", {**small, **more})
        for rest, more in (("", {}), (f", drop {DROP}", dropped))
    ]
    # what is done without the package: `fit` may use as many tokens, and often needs fewer
    found += [Setting(f"downscale, {a} of the area", "downscale, equal tokens", _method("off"), a) for a in FITS]
    return [*found, *twins] + [
        _downscale(f"downscale, tokens of {name}", name)
        for name in (mse, *(row.name for row in found if not row.name.startswith("downscale")))
    ]


def _downscale(name: str, like: str, equal: Literal["patches", "tokens"] = "tokens") -> Setting:
    return Setting(name, f"downscale, equal {equal}", _method("off"), like=like, equal=equal)


def downscaled(image: Image.Image, cells: int, factor: int = 28) -> Image.Image:
    """The picture at the smallest size, of about its own shape, that has at least `cells` cells of `factor` px."""
    unit = factor * factor
    full = _upstream_size(image, factor)
    for most in range(cells, full[0] * full[1] // unit + 1):
        height, width = _upstream_size(image, factor, most * unit)
        if height * width >= cells * unit:
            return image.resize((width, height), Image.Resampling.BICUBIC)
    return image


def scaled(image: Image.Image, area: float, factor: int = 28) -> Image.Image:
    """The picture at the size that upstream gives it with `max_pixels` at a share of its full area."""
    height, width = _upstream_size(image, factor)
    height, width = _upstream_size(image, factor, max(factor * factor, int(area * height * width)))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _upstream_size(image: Image.Image, factor: int, max_pixels: int = 10**9) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(image.height, image.width, factor, factor * factor, max_pixels)
