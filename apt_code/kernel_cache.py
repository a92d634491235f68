"""The place on disk where compiled kernels wait for the next process: whatever goes wrong there, nobody notices.

numba's own cache lets every error of the disk through to the caller of a kernel, also a kernel that calls it, and runs
whatever machine code it finds, also one that a full disk or a power cut left damaged. This one saves a digest beside
the code and loads nothing else; where it cannot load or save, the kernel is compiled for this process, as without it.
"""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

from loguru import logger
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.serialize import dumps


class _WithDigest(CompileResultCacheImpl):
    """Saves and loads `(digest, code)`."""

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        code = dumps(super().reduce(cres))
        return hashlib.sha256(code).digest(), code

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, code = payload
        if hashlib.sha256(code).digest() != digest:
            raise ValueError("the saved code is not what was saved")
        return super().rebuild(target_context, pickle.loads(code))


class KernelCache(FunctionCache):
    """numba's cache of one kernel, with the digest, and without its errors."""

    _impl_class = _WithDigest

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever a damaged file makes pickle say
            logger.debug("the compiled {} cannot be loaded, compiling it again: {!r}", self._name, error)
        try:
            self.flush()  # an index that cannot be read could not be added to either: begin a new one
        except Exception as error:
            logger.debug("nor can {} be cleared: {!r}", self.cache_path, error)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, a folder that is no longer ours
            logger.debug("the compiled {} serves this process only, it cannot be saved: {!r}", self._name, error)
