"""How kernels are compiled, whether they can be used, and what happens where one of them fails.

A kernel lies in a file of its own, beside the plain code that it stands in for. Its users import that file where they
call the kernel, after `can_compile`: numba may be missing, and takes longer to import than everything here. A kernel
calls none in another file, because what is kept on disk is compiled again only where its own file has changed.
"""

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


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile on first use, and keep the result on disk where there is a place for it, by `kernel_cache`."""
    from numba import config, njit

    kernel: Any = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
    if config.DISABLE_JIT:  # then the function as it is
        return kernel
    try:
        from apt_code.kernel_cache import KernelCache

        kernel._cache = KernelCache(function)  # what `njit(cache=True)` does, with a cache that never raises
    except Exception as error:  # a read-only installation and no home directory: compile once per process instead
        logger.debug("{} is compiled by every process, there is no place to save it: {!r}", function.__name__, error)
    return kernel


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as part of every kernel that calls it, with what is a constant there."""
    return compiled(function, forceinline=True, no_cpython_wrapper=True)


@lru_cache(maxsize=1)
def _numba_is_there() -> bool:
    try:
        from numba import config, njit

        njit(_nothing)
    except Exception as error:  # missing, or broken in one of the ways that compilers break: never our user's problem
        logger.debug(
            "importance maps and packing run uncompiled, several times slower: {!r}; pip install numba", error
        )
        return False
    if config.DISABLE_JIT:  # numba hands functions back as they are, which takes ten times as long as the plain code
        logger.debug("importance maps and packing run uncompiled, several times slower: NUMBA_DISABLE_JIT is set")
        return False
    return True


def _nothing() -> None:
    """What numba is tried on."""
