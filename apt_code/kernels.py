"""The decorator of kernels under its name of before: `apt_code.compilation` has it."""

from apt_code.compilation import compiled

__all__ = ["compiled"]
