"""The kernels are not needed: without numba, or with a broken one, the plain code does the work."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from apt_code import compilation
from apt_code.compilation import can_compile


def test_only_bytes_in_host_memory_are_compiled():
    images = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    assert can_compile(images)
    assert not can_compile(images.float())
    assert not can_compile(images.to("meta"))


def test_without_numba_everything_works_and_one_debug_line_says_so():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["numba"] = None
        import torch
        from loguru import logger
        from apt_code import PatchTokenizer
        logger.remove()
        logger.add(sys.stdout, level="DEBUG", format="{message}")
        logger.enable("apt_code")
        images = torch.arange(3 * 56 * 56, dtype=torch.int64).reshape(1, 3, 56, 56).remainder(256).to(torch.uint8)
        for _ in range(3):
            print(len(PatchTokenizer(patch_selection_method="budget", alpha=0.5)(images).patches), "patches")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("7 patches") == 3
    assert done.stdout.count("pip install numba") == 1


def test_without_a_place_for_compiled_code_it_is_compiled_anyway():
    script = textwrap.dedent(
        """
        import numba.core.caching as caching
        caching.CacheImpl._locator_classes = []
        import torch
        from apt_code import compilation
        from apt_code.entropy_utils import compute_patch_entropy_batched
        images = torch.zeros(1, 3, 14, 14, dtype=torch.uint8)
        assert compilation.can_compile(images)
        assert float(compute_patch_entropy_batched(images, 14, 1)[14]) == 0.0
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broken_numba_is_as_good_as_none():
    script = textwrap.dedent(
        """
        import sys
        class Broken:
            def __getattr__(self, name):
                raise OSError("libLLVM cannot be loaded")
        sys.modules["numba"] = Broken()
        import torch
        from apt_code import PatchTokenizer
        print(len(PatchTokenizer()(torch.zeros(1, 3, 56, 56, dtype=torch.uint8)).patches), "patch")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1 patch", done.stderr


FROM = "from apt_code.compilation import"


def test_a_kernel_calls_none_in_another_file():
    """What is kept on disk is made anew where its own file has changed, and only there."""
    files = sorted(Path(compilation.__file__).parent.rglob("*_kernel.py"))
    assert len(files) >= 7
    for path in files:
        imports = re.findall(r"^ *(?:from|import) apt_code.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert imports in ([f"{FROM} compiled"], [f"{FROM} compiled, inlined"]), (path.name, imports)
