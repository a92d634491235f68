"""Many threads, many images, and processes that are killed: nothing is mixed up, leaks or is left half-written."""

import gc
import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

ROOT = Path(__file__).parents[2]
BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
SETTINGS = (
    {"patch_selection_method": "budget", "alpha": 0.3},
    {"patch_selection_method": "budget", "alpha": 0.7, "importance_method": "upsample_mse"},
    {"patch_selection_method": "joint", "alpha": 0.5},
    {"patch_selection_method": "v1"},
    {"patch_selection_method": "v1", "thresholds": [6.0, 5.0]},
    {"patch_selection_method": "v2", "alpha": 0.8},
    {"patch_selection_method": "v2", "alpha": 0.5, "importance_method": "laplacian"},
    {"patch_selection_method": "off"},
)
CALLS = 2000
pytestmark = pytest.mark.filterwarnings("ignore")


def picture(seed):
    """Half noise, half plain, of one of several sizes."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (56 + 28 * (seed % 3), 84 + 28 * (seed % 4), 3), dtype=np.uint8)
    pixels[:, : pixels.shape[1] // 2] = seed % 256
    return Image.fromarray(pixels)


def fingerprint(output):
    digest = hashlib.sha256()
    for name in sorted(output):
        digest.update(name.encode() + np.ascontiguousarray(output[name]).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_that_share_a_processor(backend):
    """Eight threads, one processor, settings that change from call to call: each result is the serial one."""
    image_processor = backend()
    pictures = [picture(seed) for seed in range(12)]
    tasks = [(pictures[i % 12], SETTINGS[(i * 5 + i // 8) % len(SETTINGS)]) for i in range(CALLS // len(BACKENDS))]

    def work(task):
        image, settings = task
        output = image_processor(images=image, return_tensors="np", **settings)
        return fingerprint(output), image_processor.last_budget_info

    kinds = {(id(image), str(settings)): (image, settings) for image, settings in tasks}
    serial = {key: work(task) for key, task in kinds.items()}
    start = threading.Barrier(8)

    def share(number):
        start.wait()
        return [(i, work(tasks[i])) for i in range(number, len(tasks), 8)]

    with ThreadPoolExecutor(8) as pool:
        found = dict(pair for part in pool.map(share, range(8)) for pair in part)
    assert len(found) == len(tasks)
    for i, (image, settings) in enumerate(tasks):
        assert found[i] == serial[id(image), str(settings)], (i, settings)


def test_the_same_bytes_in_another_process_and_at_any_place_in_a_batch():
    """Another seed for hashing, another number of threads: nothing in a result depends on either."""
    script = (
        "from tests.transformers_apt.test_load import *\n"
        "import transformers_apt; transformers_apt.apply()\n"
        "print(*[fingerprint(b()(images=[picture(s) for s in range(6)], return_tensors='np', **k))"
        " for b in BACKENDS for k in SETTINGS])"
    )
    variables = {
        "PYTHONHASHSEED": "2",
        "OMP_NUM_THREADS": str(torch.get_num_threads() + 2),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = [
        fingerprint(backend()(images=[picture(seed) for seed in range(6)], return_tensors="np", **settings))
        for backend in BACKENDS
        for settings in SETTINGS
    ]
    assert len(set(here)) >= len(SETTINGS) and done.stdout.split() == here


def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_memory_returns_to_its_level():
    image_processor = Qwen2VLImageProcessor()

    def work(images):
        for i in range(images):
            image_processor(images=picture(i), return_tensors="pt", **SETTINGS[i % len(SETTINGS)])

    work(100)
    before = resident()
    work(5000)
    assert resident() - before < 10, "MiB more than after the first 100 images"


KILLED = """
import os, signal, sys
from pathlib import Path
count, at, folder = 0, int(sys.argv[1]), sys.argv[2]

def watch(event, arguments):
    # die at the n-th file opened for writing, moved or made below the folder: the data is there or not, as it comes
    global count
    writes = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"
    if (writes or event in ("os.rename", "os.mkdir")) and folder in str(arguments[0]):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""
VISUALIZE = (
    KILLED
    + """
from transformers_apt.cli.main import app
app(["visualize", sys.argv[3], "--output", folder, "--device", "cpu"], standalone_mode=False)
print("finished", count)
"""
)
BENCHMARK = (
    KILLED
    + """
from benchmarks.measuring import report
rows = [{"patches": n, "ms": float(n)} for n in range(2000)]
report(Path(folder), "figures", rows, {"hardware": {"gpu": None, "cpu": "c"}}, lambda axes: axes.plot([1, 2]))
print("finished", count)
"""
)


def killed_at(script, place, *arguments):
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, "-c", script, str(place), *map(str, arguments)],
        cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills itself with a POSIX signal")
@pytest.mark.parametrize("place", [4])
def test_a_killed_visualiser_leaves_no_half_folder(place, photo, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    done = killed_at(VISUALIZE, place, output, photo)
    assert done.returncode == -9, done.stdout + done.stderr
    assert not [path.name for path in output.iterdir() if not path.name.startswith(".")], (
        "half a folder, as if complete"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills itself with a POSIX signal")
def test_a_killed_benchmark_leaves_no_half_file(tmp_path):
    for place in (2, 4):  # before the figures, and before the plot, get their final names
        folder = tmp_path / str(place)
        folder.mkdir()
        done = killed_at(BENCHMARK, place, folder)
        assert done.returncode == -9, done.stdout + done.stderr
        for path in folder.iterdir():
            if path.suffix == ".json":
                assert path.read_text().endswith("}\n"), "half a file under its final name"
            else:
                assert path.suffix in (".part", ".png")
