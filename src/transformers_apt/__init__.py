"""Adaptive Patch Tokenization for Qwen-VL inside an installed transformers.

Python imports this file at every start (see `engine/startup.py`), so it imports nothing: each public name is fetched
from its module when it is first asked for.
"""

TYPE_CHECKING = False  # type checkers read this as True; importing typing would slow down every start of Python
if TYPE_CHECKING:
    from typing import Any

    from transformers_apt.embedded import demo_model_path
    from transformers_apt.engine.patching import IncompatibleTransformersError, applied, apply, revert, status
    from transformers_apt.models.stats import image_layouts, patch_stats

__version__ = "0.1.0"

__all__ = [
    "IncompatibleTransformersError",
    "__version__",
    "applied",
    "apply",
    "demo_model_path",
    "image_layouts",
    "patch_stats",
    "revert",
    "status",
]

_HOMES = {
    "embedded": ("demo_model_path",),
    "engine.patching": ("IncompatibleTransformersError", "applied", "apply", "revert", "status"),
    "models.stats": ("image_layouts", "patch_stats"),
}


def __getattr__(name: str) -> "Any":
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
