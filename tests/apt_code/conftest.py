"""What the tests of `apt_code` share."""

import pytest

from apt_code import compilation

KERNEL_FAILED = compilation._kernel_failed


@pytest.fixture(autouse=True)
def _no_kernel_fails():
    """Where a kernel fails, the plain code hides it: without this, a test would compare plain code with itself."""
    yield
    assert not KERNEL_FAILED.is_set(), "a kernel failed, and the plain code took over"
