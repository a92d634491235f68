"""What importing and the first call cost: `python -m benchmarks.startup`.

Each figure is the median over fresh processes, of processor time, because the clock also counts the disk.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from benchmarks.measuring import hardware, report

MODULES = {
    "apt_code, after torch": ("import torch", "import apt_code"),
    "transformers_apt": ("", "import transformers_apt"),
    # what Python itself has loaded by then is not the hook's cost
    "the start-up hook": (
        "import os, site, sys",
        "import transformers_apt.engine.startup; transformers_apt.engine.startup.install()",
    ),
    "the patch, after Qwen2-VL": (
        "import transformers_apt\n"
        "from transformers.models.qwen2_vl import image_processing_qwen2_vl, image_processing_pil_qwen2_vl\n"
        "from transformers.models.qwen2_vl import modeling_qwen2_vl, processing_qwen2_vl",
        "transformers_apt.apply()",
    ),
    # with the recommended settings, where compiled code can be neither found nor saved; numba's import is part of it
    "a first call, compiled anew": (
        "import torch\n"
        "from apt_code import PatchTokenizer\n"
        "from apt_code.patch_packing import Affine, RowPacker\n"
        "images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)\n"
        "images[..., :112] = 7\n"
        "images[..., :56, :56] += torch.arange(56, dtype=torch.uint8)\n"
        "affine = Affine((127.5,) * 3, (127.5,) * 3)\n",
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "layouts = PatchTokenizer(importance_method='upsample_mse', drop_tolerance=2).select_layouts(images)\n"
        "RowPacker(14, 2, affine.of, affine)(images, layouts)",
    ),
    "torch, for scale": ("", "import torch"),
}
"""What runs before, and what is timed."""


def milliseconds(before: str, timed: str) -> float:
    """One fresh process, in which the hook has not run: `-S` leaves out what an environment starts with."""
    code = f"{before}\nimport time\nstart = time.process_time()\n{timed}\nprint(1e3 * (time.process_time() - start))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment.pop("TRANSFORMERS_APT", None)
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Processes per figure.")] = 7,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the results go.")] = Path("benchmarks/results"),
) -> None:
    """Measure imports and write `startup.json`, a table and a plot."""
    rows: list[dict[str, Any]] = []
    for name, (before, timed) in tqdm(MODULES.items(), desc="imports"):
        found = [milliseconds(before, timed) for _ in range(repeats)]
        rows.append({"what": name, "ms": statistics.median(found), "least": min(found), "most": max(found)})

    def plot(axes: Any) -> None:
        axes.barh([row["what"] for row in rows], [row["ms"] for row in rows])
        axes.set(xscale="log", xlabel="milliseconds of processor time")

    report(output, "startup", rows, {"hardware": hardware(), "repeats": repeats}, plot)


if __name__ == "__main__":
    typer.run(main)
