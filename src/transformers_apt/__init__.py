"""Adaptive Patch Tokenization for Qwen2-VL inside an installed transformers.

Python imports this file at every start (see `startup.py`), so it imports nothing: each public name is fetched from its
module when it is first asked for.
"""

TYPE_CHECKING = False  # type checkers read this as True; importing typing would slow down every start of Python
if TYPE_CHECKING:
    from typing import Any

    from transformers_apt.patching import IncompatibleTransformersError, applied, apply, revert, status

__version__ = "0.1.0"

__all__ = ["IncompatibleTransformersError", "__version__", "applied", "apply", "revert", "status"]

_FROM_PATCHING = ("IncompatibleTransformersError", "applied", "apply", "revert", "status")


def __getattr__(name: str) -> "Any":
    if name in _FROM_PATCHING:
        from transformers_apt import patching

        return getattr(patching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
