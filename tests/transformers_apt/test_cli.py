"""The command as a person meets it: what it prints, and the exit code."""

import importlib.metadata

import pytest
from typer.testing import CliRunner

import transformers_apt
from transformers_apt import demo, startup
from transformers_apt.cli import BAD_INPUT, app, main

runner = CliRunner(env={"COLUMNS": "200"})


def test_status_on():
    result = runner.invoke(app, ["status"])
    assert result.exit_code == 0
    assert "on" in result.stdout.split("\n")[0]
    assert importlib.metadata.version("transformers") in result.stdout
    assert ">=5.18,<6.0" in result.stdout
    assert "Qwen2VLForConditionalGeneration" in result.stdout


@pytest.mark.parametrize(
    ("variable", "reason"),
    [("0", "TRANSFORMERS_APT=0 switches it off"), ("", "hook is not installed")],
)
def test_status_off_says_why(upstream, monkeypatch, variable, reason):
    monkeypatch.setenv(startup.SWITCH, variable)
    with upstream():
        result = runner.invoke(app, ["status"])
    assert result.exit_code == 1
    assert "off" in result.stdout and reason in result.stdout


def test_status_repeats_the_hooks_reason(upstream):
    with upstream():
        transformers_apt.patching.record_failure(ValueError("a test broke it"))
        result = runner.invoke(app, ["status"])
    assert result.exit_code == 1
    assert "ValueError: a test broke it" in result.stdout


def test_demo_on_a_checkpoint_and_an_image(folder, half_plain, tmp_path, monkeypatch):
    few = ({"patch_selection_method": "off"}, {"patch_selection_method": "budget", "alpha": 0.3})
    monkeypatch.setattr(demo, "SETTINGS", few)
    half_plain.save(tmp_path / "photo.png")
    options = ["--model", str(folder), "--image", str(tmp_path / "photo.png"), "--prompt", "What?", "--repeats", "1"]
    result = runner.invoke(app, ["demo", *options, "--max-new-tokens", "3", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "224×168 px" in result.stdout
    assert "random" not in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["off", "(upstream)", "192", "0", "0", "192", "100%", "48"] in lines
    assert any(line[:2] == ["off", "(upstream)"] and line[3::2] == ["(1.00)"] * 4 for line in lines)
    assert any(line[:2] == ["budget", "0.3"] and line[6:7] == ["30%"] for line in lines)
    assert any(line[:2] == ["budget", "0.3"] and len(line) == 10 for line in lines)
    assert "budget 0.3: " in result.stdout


def test_demo_without_a_model_says_that_it_is_random(monkeypatch):
    monkeypatch.setattr(demo, "SETTINGS", ({"patch_selection_method": "off"},))
    result = runner.invoke(app, ["demo", "--repeats", "1", "--max-new-tokens", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "random weights" in result.stdout
    assert "512×512 px" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "/nowhere/photo.jpg"], "/nowhere/photo.jpg cannot be read as an image"),
        (["--image", __file__], "cannot be read as an image"),
        (["--model", "/nowhere/checkpoint"], "/nowhere/checkpoint is not a folder"),
        (["--dtype", "int8"], "--dtype int8: expected float32"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(options, message):
    result = runner.invoke(app, ["demo", *options])
    assert result.exit_code == BAD_INPUT
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_no_photo_and_no_scikit_image(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers-apt\[demo\]"):
        demo.load_photo(None)


def test_a_phones_photo_is_turned_upright(half_plain, tmp_path):
    exif = half_plain.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    half_plain.save(tmp_path / "phone.jpg", exif=exif)
    assert demo.load_photo(tmp_path / "phone.jpg").size == (half_plain.height, half_plain.width)


def test_a_checkpoint_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    _, processor = demo.load_checkpoint(f"~/{folder.name}", "cpu", "float32")
    assert type(processor).__name__ == "Qwen2VLProcessor"


def test_a_checkpoint_of_another_family_is_refused(folder, monkeypatch):
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: object())
    result = runner.invoke(app, ["demo", "--model", str(folder)])
    assert result.exit_code == BAD_INPUT
    assert "adaptive patches need a Qwen2-VL checkpoint" in result.stderr


def test_main_is_the_installed_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["transformers-apt", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0


def test_labels():
    assert demo.label({"patch_selection_method": "off"}) == "off (upstream)"
    assert demo.label({"patch_selection_method": "v1"}) == "v1"
    settings = {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"}
    assert demo.label(settings) == "budget 0.3 upsample_mse"
