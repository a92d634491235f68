"""Whether the compiled kernels can be used, and what happens where one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from loguru import logger
from torch import Tensor


class KernelFailedError(RuntimeError):
    """A kernel could not be compiled or run; for the caller to catch and to use the plain code, never for the user."""


_kernel_failed = threading.Event()
"""A fact about this process, like whether numba is there: what failed once would take seconds to fail again."""


def can_compile(values: Tensor, dtype: torch.dtype = torch.uint8) -> bool:
    """Whether the kernels can take these images or maps: of the expected type, in host memory, and numba is there."""
    return values.dtype == dtype and values.device.type == "cpu" and _numba_is_there() and not _kernel_failed.is_set()


def run_kernel(kernel: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel. What it was to write is to be written again in full where it fails.

    Raises:
        KernelFailedError: from whatever numba said; from then on `can_compile` is false.
    """
    try:
        return kernel(*args)
    except MemoryError:  # the plain code needs more
        raise
    except Exception as error:
        _kernel_failed.set()
        logger.debug("a compiled kernel failed, the plain code takes over, several times slower: {!r}", error)
        raise KernelFailedError(str(kernel)) from error


@lru_cache(maxsize=1)
def _numba_is_there() -> bool:
    try:
        from apt_code import kernels
    except Exception as error:  # missing, or broken in one of the ways that compilers break: never our user's problem
        logger.debug(
            "importance maps and packing run uncompiled, several times slower: {!r}; pip install numba", error
        )
        return False
    if kernels.INTERPRETED:
        logger.debug("importance maps and packing run uncompiled, several times slower: NUMBA_DISABLE_JIT is set")
        return False
    return True
