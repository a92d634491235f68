"""Peak memory of a piece of work on the CPU, whoever allocates it: torch, numpy or compiled code."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


def grown(work: Callable[[], Any]) -> int:
    """Peak bytes of resident memory that `work` needs beyond what the process held before.

    Raises:
        OSError: the system has no `/proc/self/clear_refs` (Linux has) to start the peak anew.
    """
    _return_freed()
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) * 1024


def _return_freed() -> None:
    """Give freed memory back to the system: what the allocator kept, a measure would not see being used again."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
