"""Two processes on the CPU compute what one does: with `transformers.Trainer`, and in practice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.transformers_apt.training import two_processes

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The folders that one process and two have written."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    launch += ["--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*launch, two_processes.__file__, str(two)], env=environment, **pipes) as launched:
        two_processes.main(one)
        printed, _ = launched.communicate(timeout=600)
    assert launched.returncode == 0, printed
    assert [json.loads((folder / "processes.json").read_text()) for folder in (one, two)] == [1, 2]
    return one, two


def trainer_losses(folder):
    history = json.loads((folder / "lora" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def practice_losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "practice" / "practice" / "log.jsonl").open()]


@pytest.mark.slow
@pytest.mark.parametrize(("losses", "steps"), [(trainer_losses, 2), (practice_losses, 3)])
def test_the_losses_are_those_of_one_process(losses, steps, outcomes):
    one, two = map(losses, outcomes)
    assert len(one) == steps
    assert two == pytest.approx(one, rel=1e-3, abs=2e-5)


@pytest.mark.slow
def test_the_trainers_loss_falls(outcomes):
    for folder in outcomes:
        first, second = trainer_losses(folder)
        assert second < first


@pytest.mark.slow
def test_the_branch_has_learned_the_same(outcomes):
    one, two = (load_file(folder / "practice" / "branch.safetensors") for folder in outcomes)
    assert float(one["zero.weight"].abs().max()) > 1e-5
    torch.testing.assert_close(two["zero.weight"], one["zero.weight"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_both_agree_as_much_with_the_teacher(outcomes):
    one, two = (json.loads((folder / "practice" / "practice" / "agreement.json").read_text()) for folder in outcomes)
    for moment in ("before", "after"):
        for name, agreement in one[moment].items():
            assert two[moment][name] == pytest.approx(agreement, abs=1e-4), (moment, name)
