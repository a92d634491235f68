"""What the tests of the start-up hook share."""

import site
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def installed():
    if not any((Path(folder) / "transformers_apt.pth").exists() for folder in site.getsitepackages()):
        pytest.fail(
            "transformers_apt.pth is not in site-packages: the package is not installed here. Run `make venv`."
        )
