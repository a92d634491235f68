"""`apt_code` stands alone: no transformers, and no word unless asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loguru import logger

from apt_code import PatchTokenizer

ROOT = Path(__file__).parents[2]

WITHOUT_TRANSFORMERS = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "transformers_apt"):
            raise ImportError(f"{name} is blocked")

# the start-up hook, where it is installed, imports its own package before this line
for name in [name for name in sys.modules if name.startswith("transformers")]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())
import apt_code
for module in pkgutil.walk_packages(apt_code.__path__, "apt_code."):
    importlib.import_module(module.name)

import torch
for method in ("v1", "v2", "budget"):
    tokenized = apt_code.PatchTokenizer(patch_selection_method=method)(torch.zeros(1, 3, 56, 56))
    assert tokenized.layouts[0].num_patches == {"v1": 1, "v2": 16, "budget": 16}[method]
assert not {"transformers", "transformers_apt"} & set(sys.modules)
print("done")
"""


def test_works_where_transformers_cannot_be_imported():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_APT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr == "", "apt_code spoke without being asked"


@pytest.fixture
def heard():
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(message.record["name"]), level=0)
    yield messages
    logger.remove(sink)
    logger.disable("apt_code")


def test_speaks_only_after_being_enabled(heard):
    images = torch.zeros(1, 3, 56, 56)
    PatchTokenizer()(images)
    assert heard == []
    logger.enable("apt_code")
    PatchTokenizer()(images)
    assert heard and all(name.startswith("apt_code.") for name in heard)


def test_importing_costs_little_beside_torch():
    """No compiler and no plotting at import; processor time of a fresh process, the least of three."""
    code = (
        "import time, torch; start = time.process_time(); import apt_code; spent = time.process_time() - start\n"
        "import sys; assert not {'numba', 'llvmlite', 'matplotlib'} & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('apt_code') and name.endswith('_kernel')]\n"
        "print(1e3 * spent)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRANSFORMERS_APT": "0"}
    found = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.append(float(done.stdout))
    assert min(found) < 150, f"{found} ms"
