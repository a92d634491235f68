"""The kernels' place on disk may break in any way, and kernels may fail: callers see right results and no error."""

import errno
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from loguru import logger
from numba.core.caching import IndexDataCacheFile

from apt_code import PatchTokenizer, compilation
from apt_code.importance import IMPORTANCE_METHODS, entropy_kernel
from apt_code.patch_packing import RowPacker
from tests.apt_code.kernels import KERNELS

SOURCE = """
from apt_code.compilation import compiled

@compiled
def inner(values):
    total = 0
    for i in range(values.shape[0]):
        total += i * values[i]
    return total

@compiled
def outer(values):
    return inner(values) + inner(values[1:])
"""
VALUES = np.arange(10)
EXPECTED = 285 + 240


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Two kernels, one calling the other, as a new process would find them; their files lie under `tmp_path`."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tiny.py"
    path.write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("tiny", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def heard():
    messages: list[str] = []
    logger.enable("apt_code")
    sink = logger.add(lambda message: messages.append(message.record["message"]), level="DEBUG")
    yield messages
    logger.remove(sink)
    logger.disable("apt_code")


def saved(folder: Path, ending: str) -> list[Path]:
    found = sorted(folder.glob(f"cache/*/*.{ending}"))
    assert len(found) == 2, "one for each kernel"
    return found


def hits(kernel) -> int:
    return sum(kernel.stats.cache_hits.values())


def test_what_is_saved_is_loaded(fresh, heard):
    first, second = fresh(), fresh()
    assert first.outer(VALUES) == EXPECTED and hits(first.outer) == 0
    assert second.outer(VALUES) == EXPECTED and hits(second.outer) == 1
    assert second.inner(VALUES) == 285 and hits(second.inner) == 1
    assert heard == []


def zero_the_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) // 2 + len(data) // 4 :]


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"garbage" * 100,
        zero_the_middle,  # machine code that pickle has nothing against, and that would end the process
        lambda data: bytes(len(data)),
        lambda data: pickle.dumps(3),
        lambda data: pickle.dumps((b"", b"")),
        lambda data: pickle.dumps(numba.__version__) + pickle.dumps(3),
    ],
    ids=["empty", "half", "short", "garbage", "zeroed inside", "zeros", "a number", "another pair", "no index"],
)
def test_a_damaged_file_is_made_again(fresh, tmp_path, heard, ending, damage):
    fresh().outer(VALUES)
    for path in saved(tmp_path, ending):
        path.write_bytes(damage(path.read_bytes()))
    damaged, mended = fresh(), fresh()
    assert damaged.outer(VALUES) == EXPECTED and hits(damaged.outer) == 0
    assert damaged.inner(VALUES) == 285
    assert any("cannot be loaded, compiling it again" in line for line in heard) or ending == "nbi"
    assert mended.outer(VALUES) == EXPECTED and hits(mended.outer) == 1, "the next process loads it again"


@pytest.mark.skipif(sys.platform != "linux", reason="changes a byte of an ELF file")
def test_code_that_is_not_what_was_saved_is_not_run(fresh, tmp_path, heard):
    """A byte that pickle and LLVM have nothing against: in the machine code such a one would end the process."""
    fresh().outer(VALUES)
    for path in saved(tmp_path, "nbc"):
        data = bytearray(path.read_bytes())
        data[data.index(b"\x7fELF") + 12] ^= 1  # padding of the header
        path.write_bytes(data)
    damaged = fresh()
    assert damaged.outer(VALUES) == EXPECTED and hits(damaged.outer) == 0
    assert "is not what was saved" in heard[0]


def test_numbas_own_entries_are_replaced(fresh, tmp_path):
    """Those of an earlier version, which has no digest beside the code."""
    path = tmp_path / "tiny.py"
    path.write_text(SOURCE.replace("from apt_code.compilation import compiled", "from numba import njit as compiled"))
    plain = fresh()
    plain.inner.enable_caching(), plain.outer.enable_caching()
    assert plain.outer(VALUES) == EXPECTED
    stamp = os.stat(path)
    data = {found: found.read_bytes() for found in saved(tmp_path, "nbc")}
    path.write_text(SOURCE)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    fresh().outer(VALUES)
    for found, old in data.items():
        found.write_bytes(old)
    found = fresh()
    assert found.outer(VALUES) == EXPECTED and hits(found.outer) == 0


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_file_that_is_gone_or_cannot_be_read(fresh, tmp_path, ending):
    for take_away in (lambda path: None, lambda path: path.mkdir()):
        fresh().outer(VALUES)
        for path in saved(tmp_path, ending):
            path.unlink()
            take_away(path)
        assert fresh().outer(VALUES) == EXPECTED
        shutil.rmtree(tmp_path / "cache")


def test_a_folder_that_is_no_longer_one(fresh, tmp_path, heard):
    found = fresh()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    assert found.outer(VALUES) == EXPECTED and found.inner(VALUES) == 285
    assert sum("cannot be saved" in line for line in heard) == 2


@pytest.mark.parametrize("step", ["_save_index", "_save_data", "_load_index", "_load_data"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), EOFError(), pickle.UnpicklingError("?")])
def test_errors_on_the_way(fresh, monkeypatch, step, error):
    fresh().outer(VALUES)

    def fail(*args):
        raise error

    monkeypatch.setattr(IndexDataCacheFile, step, fail)
    for values in (VALUES, VALUES.astype(np.int32)):  # saved already, and not
        assert fresh().outer(values) == EXPECTED


def test_no_place_at_all(fresh, tmp_path, monkeypatch, heard):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert fresh().outer(VALUES) == EXPECTED
    assert sum("there is no place to save it" in line for line in heard) == 2


DEFAULT_CALL = """
import torch
from apt_code import PatchTokenizer
tokenizer = PatchTokenizer()
print(len(tokenizer.select_layouts(torch.zeros(1, 3, 56, 84, dtype=torch.uint8))[0]), "patches")
"""


def run(script: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TRANSFORMERS_APT": "0", **options.pop("env", {})}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, which Windows has not")
def test_the_default_call_on_a_full_disk(tmp_path):
    """A limit of a few bytes a file lets the folder be made, and then nothing be written to it."""
    import resource

    done = run(
        DEFAULT_CALL,
        env={"NUMBA_CACHE_DIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 patches\n", "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing half written is left"


def test_without_a_compiler_the_plain_code_runs_not_interpreted_kernels():
    script = textwrap.dedent(
        """
        import sys
        from loguru import logger
        from apt_code.importance import entropy_kernel
        logger.remove()
        logger.add(sys.stdout, level="DEBUG", format="{message}")
        logger.enable("apt_code")
        del entropy_kernel.entropies
        """
    )
    done = run(script + DEFAULT_CALL, env={"NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr
    assert "3 patches" in done.stdout and done.stdout.count("NUMBA_DISABLE_JIT is set") == 1


# -------------------------------------------------------------------- kernels that fail


def everything(images: torch.Tensor) -> list[torch.Tensor]:
    """What comes of these images by way of every kernel."""
    found = []
    for importance_method in IMPORTANCE_METHODS:
        for method in ("budget", "joint"):
            tokenizer = PatchTokenizer(
                patch_selection_method=method,
                alpha=0.5,
                importance_method=importance_method,
                drop_tolerance=30,
                predict_tolerance=60,
            )
            layouts = tokenizer.select_layouts(images)
            found += [layout.patches for layout in layouts]
            found += RowPacker(14, 2, lambda pixels: pixels / 255)(images, layouts)
    return found


def spoil(values) -> None:
    """Write garbage wherever a kernel might have."""
    for value in values:
        if isinstance(value, tuple):
            spoil(value)
        elif isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float64, np.bool_):
            value[...] = 1


@pytest.mark.parametrize(("module", "name"), KERNELS)
def test_where_a_kernel_fails_the_plain_code_begins_anew(monkeypatch, heard, module, name):
    images = torch.randint(0, 256, (2, 3, 112, 140), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    images[:, :, :56] //= 64
    expected = everything(images)
    monkeypatch.setattr(compilation, "_kernel_failed", threading.Event())
    calls = []

    def fail(*args):
        calls.append(name)
        outputs = dict.fromkeys(("entropies", "upsampling_losses", "gather_rows"), args[-1:])
        spoil(outputs.get(name, [] if name == "canonical_patches" else args[-1:]))
        raise SystemError("LLVM has no such instruction")

    monkeypatch.setattr(module, name, fail)
    heard.clear()
    for found, wanted in zip(everything(images), expected, strict=True):
        assert torch.equal(found, wanted)
    assert calls == [name], "what failed once is not tried again"
    assert sum("the plain code takes over" in line for line in heard) == 1
    assert not compilation.can_compile(images)


def test_running_out_of_memory_is_said(monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(entropy_kernel, "entropies", fail)
    with pytest.raises(MemoryError):
        PatchTokenizer()(torch.zeros(1, 3, 56, 56, dtype=torch.uint8))
