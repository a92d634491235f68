"""Whether the compiled kernels can be used."""

from __future__ import annotations

from functools import lru_cache

import torch
from loguru import logger
from torch import Tensor


def can_compile(values: Tensor, dtype: torch.dtype = torch.uint8) -> bool:
    """Whether the kernels can take these images or maps: of the expected type, in host memory, and numba is there."""
    return values.dtype == dtype and values.device.type == "cpu" and _numba_is_there()


@lru_cache(maxsize=1)
def _numba_is_there() -> bool:
    try:
        from apt_code import kernels  # noqa: F401
    except Exception as error:  # missing, or broken in one of the ways that compilers break: never our user's problem
        logger.debug(
            "importance maps and packing run uncompiled, several times slower: {!r}; pip install numba", error
        )
        return False
    return True
