"""`transformers-apt app` as a person meets it, without a browser."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transformers_apt import embedded
from transformers_apt.app import examples as app_examples
from transformers_apt.cli.main import app
from transformers_apt.cli.messages import BAD_INPUT
from transformers_apt.embedded import asking

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")


def _one_line(result):
    assert result.exit_code == BAD_INPUT, result.output
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
    return result.stderr


def test_it_serves_until_interrupted_and_leaves_nothing_behind(folder, monkeypatch):
    gradio = pytest.importorskip("gradio")
    seen = {}

    def block(page):
        seen.update(address=page.local_url, folder=Path(os.environ["GRADIO_TEMP_DIR"]), size=page.max_file_size)
        assert seen["folder"].is_dir() and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        page.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", block)
    result = runner.invoke(app, ["app", "--model", str(folder), "--device", "cpu", "--max-upload-mb", "3"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(seen["address"]) and "this machine only" in result.stdout
    assert seen["size"] == 3 * 1024**2
    assert not seen["folder"].exists()


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_without_the_extra_one_line_names_it(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    line = _one_line(runner.invoke(app, ["app"]))
    assert missing in line and "transformers-apt[app]" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dtype", "int8"], "--dtype int8: expected one of float32"),
        (["--device", "tpu"], "--device tpu: expected one of auto"),
        (["--model", "./nowhere"], "./nowhere is not a folder"),
        (["--port", "99999"], "--port"),
        (["--max-upload-mb", "0"], "--max-upload-mb"),
    ],
)
def test_wrong_options_are_one_line(options, named):
    pytest.importorskip("gradio")
    assert named in _one_line(runner.invoke(app, ["app", *options]))


def test_the_model_is_named_with_its_size(answerer):
    weights = sum(weight.numel() for weight in answerer.model.parameters())
    said = asking.describe_model("some/model", answerer.model, "cpu")
    assert said == f"some/model ({weights / 1e6:.1f} million parameters, on cpu)"
    assert asking.describe_model(None, answerer.model, "cpu").startswith("the embedded model (")


def test_examples_are_those_that_are_here(tmp_path, monkeypatch):
    def nothing():
        raise FileNotFoundError

    monkeypatch.setattr(embedded, "examples", nothing)
    found = app_examples.collect(tmp_path / "examples")
    assert [example.image.stem for example in found] == list(app_examples.PHOTOGRAPHS)
    assert all(example.image.is_file() and example.answer is None for example in found)
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert app_examples.collect(tmp_path / "none") == []
