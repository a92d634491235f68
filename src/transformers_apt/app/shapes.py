"""For which models the page estimates the compute: the published ones of the checkpoint's own family, and itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers_apt.embedded import demo_model_path
from transformers_apt.models.families import series_of
from transformers_apt.models.flops import PUBLISHED, Shape, shape_of

OWN = "own"


class Shapes:
    """What can be chosen.

    Args:
        config: the checkpoint's.

    Attributes:
        by_name: the shapes.
        labels: `(label, name)` of each, as the page shows them.
        chosen: the name that is there at first: the checkpoint's own size, else the smallest.
    """

    def __init__(self, config: Any) -> None:
        self.by_name: dict[str, Shape] = dict(PUBLISHED[config.model_type])
        self.labels = [(f"{series_of(config.model_type)}-{name.upper()}", name) for name in self.by_name]
        own = shape_of(config)
        alike = [name for name, shape in self.by_name.items() if shape == own]
        if not alike and not _is_embedded(config):  # of which there is nothing to estimate
            self.by_name[OWN] = own
            self.labels.append(("this checkpoint", OWN))
            alike = [OWN]
        self.chosen = alike[0] if alike else self.labels[0][1]

    def label(self, name: str) -> str:
        """Of one of them, short enough for a table."""
        return "this model" if name == OWN else name.upper()


def _is_embedded(config: Any) -> bool:
    try:
        return Path(config.name_or_path) == demo_model_path()
    except FileNotFoundError:
        return False
