"""Files that an interruption, or a full disk, leaves as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def replace(file: Path, data: bytes | str) -> None:
    """Write a file beside its place, then move it there. Folders are made where they are missing.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        new.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(new, file)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error


def read_json(file: Path) -> dict[str, Any]:
    """An object that was written to a file.

    Raises:
        ValueError: it is damaged; the error names the file.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from error
