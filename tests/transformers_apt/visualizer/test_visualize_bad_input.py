"""The visualiser on bad input: one line, exit code 2, and nothing half-written."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from transformers_apt.cli.messages import BAD_INPUT
from transformers_apt.visualizer import files as visualize_files
from transformers_apt.visualizer import view as visualize
from transformers_apt.visualizer.view import load_picture, pick_device


def _truncated(photo):
    path = photo.with_name("cut.png")
    path.write_bytes(photo.read_bytes()[:5000])
    return path


def _thin(photo):
    Image.new("RGB", (3000, 10)).save(photo.with_name("thin.png"))
    return photo.with_name("thin.png")


def _text(photo):
    photo.with_name("text.png").write_text("hello")
    return photo.with_name("text.png")


def _empty_folder(photo):
    photo.with_name("empty").mkdir()
    return photo.with_name("empty")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda photo: "/nowhere/[b]photo.jpg", [], "/nowhere/[b]photo.jpg does not exist; expected"),
        (_text, [], "text.png cannot be read as an image"),
        (_truncated, [], "cut.png cannot be read as an image"),
        (_thin, [], "thin.png: absolute aspect ratio must be smaller than 200"),
        (_empty_folder, [], "holds no images"),
        (Path, ["--patch-selection-method", "budget", "--alpha", "1.5"], "alpha=1.5 with 'budget'"),
        (Path, ["--patch-selection-method", "v2", "--alpha", "-1"], "alpha=-1.0 with 'v2'"),
        (Path, ["--alpha", "much"], "Invalid value for '--alpha': "),
        (Path, ["--patch-selection-method", "v3"], "--patch-selection-method v3: expected one of v1, v2"),
        (Path, ["--importance-method", "beauty"], "--importance-method beauty: expected one of entropy"),
        (Path, ["--thresholds", "nan", "2"], "holds NaN"),
        (Path, ["--thresholds", "3", "low"], "Invalid value for '--thresholds': "),
        (Path, ["--thresholds", "3"], "Invalid value for '--thresholds': "),  # takes --device for the second
        (Path, ["--merge-size", "3"], "merge_size=3: expected 2"),
        (Path, ["--patch-size", "0"], "patch_size=0: expected 1 or more"),
        (Path, ["--model", "/nowhere/checkpoint"], "/nowhere/checkpoint is not a folder"),
        (Path, ["--input-image", "other.png"], "IMAGE or --input-image, and not both"),
        (Path, ["--colour"], "No such option: --colour"),
    ],
)
def test_bad_input(photo, tmp_path, source, options, message, visualize_command):
    out = tmp_path / "out"
    result = visualize_command(source(photo), "-o", out, *options)
    assert result.exit_code == BAD_INPUT, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == "" and not out.exists()


def test_no_image_at_all(visualize_command):
    result = visualize_command()
    assert result.exit_code == BAD_INPUT and "expected one image or folder" in result.stderr


@pytest.mark.parametrize("several", [False, True])
def test_an_output_that_cannot_be_written(photo, several, visualize_command):
    in_the_way = photo.with_name("file")
    in_the_way.write_text("x")
    result = visualize_command(photo.parent if several else photo, "-o", in_the_way)
    assert result.exit_code == BAD_INPUT and len(result.stderr.strip().splitlines()) == 1
    result = visualize_command(photo.parent if several else photo, "-o", in_the_way / "below")
    assert result.exit_code == BAD_INPUT and len(result.stderr.strip().splitlines()) == 1


def test_a_device_file_is_no_image(tmp_path):
    with pytest.raises(visualize.UnusableImageError, match="is not a file"):
        load_picture(Path(os.devnull))


def test_an_image_too_long_for_a_jpeg(tmp_path):
    Image.new("L", (65_501, 400)).save(tmp_path / "long.png")
    with pytest.raises(visualize.UnusableImageError, match="65501×400 px: expected at most"):
        load_picture(tmp_path / "long.png")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(ValueError, match="no CUDA device is available here; use --device cpu"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="device='tpu': expected auto, cpu or cuda"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device("auto"), pick_device("cuda"), pick_device("cpu")) == ("cuda", "cuda", "cpu")


def test_a_full_gpu_says_what_to_do(photo, tmp_path, monkeypatch, visualize_command):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(visualize_files, "examine", full)
    result = visualize_command(photo, "-o", tmp_path / "out")
    assert result.exit_code == BAD_INPUT and "not enough memory on the GPU; use --device cpu" in result.stderr


@pytest.mark.parametrize("several", [False, True])
def test_no_matplotlib(photo, tmp_path, monkeypatch, several, visualize_command):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = visualize_command(photo.parent if several else photo, "-o", tmp_path / "out")
    assert result.exit_code == BAD_INPUT and not (tmp_path / "out").exists()
    assert "pip install 'transformers-apt[viz]'" in result.stderr and len(result.stderr.strip().splitlines()) == 1
