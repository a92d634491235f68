"""The programs that live in one environment with this package, and how their cases are run."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BYSTANDERS = "BYSTANDERS"
"""Environment variable of `make test-bystanders`: the programs' environments, up to the name of the program."""


@dataclass(frozen=True)
class Case:
    """A row of the matrix.

    Attributes:
        module, name: the function that runs it.
        environment: the program's own, by its file in `requirements/`; `None` where the main one is enough.
    """

    module: str
    name: str
    environment: str | None = None

    def __str__(self):
        return f"{self.module}.{self.name}"


SERVERS = (Case("servers", "vllm"), Case("servers", "sglang"), Case("servers", "lmdeploy"))
RELATIVES = (Case("subclasses", "outputs"), Case("families", "outputs"))
PROGRAMS = (
    Case("trl_cases", "supervised_and_newer", "trl"),
    Case("trl_cases", "grpo", "trl"),
    Case("trl_cases", "rloo", "trl"),
    Case("embeddings", "outputs", "sentence-transformers"),
    Case("llama_factory", "train_step", "llamafactory"),
    Case("ms_swift", "train_step", "ms-swift"),
    Case("evaluation", "lmms_eval", "lmms-eval"),
    Case("evaluation", "qwen_vl_utils", "qwen-vl-utils"),
)


def need(case):
    """Skip a case whose environment is not there, but only where nobody asked for it."""
    if case.environment is not None and BYSTANDERS not in os.environ:
        pytest.skip(f"needs an environment with {case.environment}: make test-bystanders")


def run(*wanted):
    """What `(case, variables)` pairs came to, each in a process of its own and all at once.

    `variables` are set on top of an environment in which nothing is asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for index, (case, variables) in enumerate(wanted):
            need(case)
            output = Path(folder) / f"{index}.json"
            started.append((case, output, _start(case, variables, output)))
        return [_outcome(*process) for process in started]


def _start(case, variables, output):
    python = sys.executable
    if case.environment is not None:
        python = f"{os.environ[BYSTANDERS]}-{case.environment}/bin/python"
    nothing_asked = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_APT")}
    return subprocess.Popen(
        [python, "-m", "tests.bystanders.run", case.module, case.name, str(output)],
        cwd=ROOT,
        env=nothing_asked | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(output.parent)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _outcome(case, output, process):
    printed, _ = process.communicate(timeout=300)
    assert output.exists(), f"{case} died:\n{printed}"
    return json.loads(output.read_text(encoding="utf-8")) | {"printed": printed}
