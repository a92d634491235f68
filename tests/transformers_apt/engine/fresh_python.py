"""Code in a new Python of this environment, and what it says."""

import os
import subprocess
import sys
import textwrap


def joined(*parts: str) -> str:
    return "\n".join(textwrap.dedent(part) for part in parts)


def environment(**variables: str) -> dict[str, str]:
    """This process's, but nothing except `variables` speaks to the hook, to site or to warnings."""
    unwanted = ("TRANSFORMERS_APT", "COV_", "COVERAGE_", "PYTHONWARNINGS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return inherited | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}


def run(*parts: str, flags: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python of this environment."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", joined(*parts)],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def said(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
