"""What all tests share."""

import pytest
from hypothesis import settings

# Repeatable by default, so that a failing run can be run again. To search further:
# pytest --hypothesis-profile=explore, or make fuzz
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.register_profile("fuzz", deadline=None, max_examples=3000)
settings.load_profile("ci")


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device: compares its results with the CPU's")
