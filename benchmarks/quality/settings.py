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
IMPORTANCE = ("upsample_mse", "laplacian", "entropy")


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: unique.
        series: the curve it belongs to.
        images_kwargs: for the processor.
        like: for `downscale`, the name of the setting whose size it matches.
        equal: in what.
    """

    name: str
    series: str
    images_kwargs: dict[str, Any] = field(default_factory=dict)
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
    for alpha in alphas:
        for method in (*importance, *CANDIDATES):
            options = {"alpha": alpha, "importance_method": method}
            found.append(Setting(f"budget {method} {alpha}", f"budget {method}", _method("budget", **options)))
        options = {"alpha": alpha, "importance_method": importance[0]}
        joint = Setting(f"joint {importance[0]} {alpha}", f"joint {importance[0]}", _method("joint", **options))
        found.append(joint)
        if alpha < 1:
            budget = f"budget {importance[0]} {alpha}"  # `joint` has as many patches
            for name, like, equal in (
                (f"downscale, patches of {alpha}", budget, "patches"),
                (f"downscale, tokens of {alpha}", budget, "tokens"),
                (f"downscale, tokens of joint {alpha}", joint.name, "tokens"),
            ):
                found.append(Setting(name, f"downscale, equal {equal}", _method("off"), like, equal))
    return found


def downscaled(image: Image.Image, cells: int, factor: int = 28) -> Image.Image:
    """The picture at the smallest size, of about its own shape, that has at least `cells` cells of `factor` px."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    unit = factor * factor
    full = smart_resize(image.height, image.width, factor, unit, 10**9)
    for most in range(cells, full[0] * full[1] // unit + 1):
        height, width = smart_resize(image.height, image.width, factor, unit, most * unit)
        if height * width >= cells * unit:
            return image.resize((width, height), Image.Resampling.BICUBIC)
    return image
