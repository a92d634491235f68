"""The scripts in docs/ with a checkpoint of another family: its own sizes, and nothing of Qwen2-VL's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transformers_apt.embedded.tiny_checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["quick_start", "demo_patch_selection"])
def test_a_checkpoint_with_patches_of_16_px(script, tmp_path):
    model = save_checkpoint(tmp_path / "checkpoint", family="qwen3_vl")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    command = [sys.executable, ROOT / "docs" / f"{script}.py", "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"16 px +32 px +64 px", done.stdout)
    assert "28 px" not in done.stdout and "very small model" not in done.stdout
