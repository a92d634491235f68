"""What is a number. Needs no gradio, so that the page's work can be done without it."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """A number that can be reckoned with; booleans are none."""
    return (
        not isinstance(value, bool)
        and isinstance(value, int | float)
        and (isinstance(value, int) or math.isfinite(value))
    )
