"""Whose checkpoint an image processor was loaded from: since release 5 its own part of the files does not say so."""

import json
import os
from collections.abc import Mapping
from typing import Any

from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME
from transformers.utils.hub import cached_file

_WHERE = ("cache_dir", "revision", "subfolder")
"""The arguments of `from_pretrained` that say where the files lie."""


def processor_class_of(checkpoint: str | os.PathLike[str], arguments: Mapping[str, Any]) -> str | None:
    """The name of a checkpoint's processor class, `None` where its files do not say.

    Upstream has just read the image processor there, so what lies on a hub is looked up in the cache only.

    Args:
        checkpoint: a folder, a file in it, or a hub id.
        arguments: those of the `from_pretrained` call.
    """
    folder = os.path.dirname(os.path.abspath(checkpoint)) if os.path.isfile(checkpoint) else checkpoint
    where = {name: arguments[name] for name in _WHERE if arguments.get(name) is not None}
    name = _read(folder, PROCESSOR_NAME, where).get("processor_class")
    if name is None:
        model_type = _read(folder, CONFIG_NAME, where).get("model_type")
        # of a model that upstream does not know, the name is enough to see that it is none of ours
        if isinstance(model_type, str):
            name = PROCESSOR_MAPPING_NAMES.get(model_type, f"the processor of {model_type}")
    return name if isinstance(name, str) else None


def _read(folder: str | os.PathLike[str], name: str, where: Mapping[str, Any]) -> Mapping[str, Any]:
    """A JSON file of a checkpoint, empty where there is none that can be read."""
    try:
        path = cached_file(folder, name, local_files_only=True, _raise_exceptions_for_missing_entries=False, **where)
        with open(path or "", encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
