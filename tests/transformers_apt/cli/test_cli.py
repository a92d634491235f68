"""The command as a person meets it: what it prints, and the exit code."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import transformers_apt
from apt_code.importance import IMPORTANCE_METHODS
from transformers_apt import embedded
from transformers_apt.cli import comparison, visualize
from transformers_apt.cli.main import app, main
from transformers_apt.cli.messages import BAD_INPUT
from transformers_apt.cli.progress import progress
from transformers_apt.embedded import asking
from transformers_apt.engine import patching, startup
from transformers_apt.models import reach, settings
from transformers_apt.models.families import NAMES, SUPPORTED
from transformers_apt.models.image_files import load_photo

runner = CliRunner(env={"COLUMNS": "200"})
NARROW = {"COLUMNS": "80"}


def test_status_on():
    result = runner.invoke(app, ["status"])
    assert result.exit_code == 0
    assert "on" in result.stdout.split("\n")[0]
    assert importlib.metadata.version("transformers") in result.stdout
    assert ">=5.18,<6.0" in result.stdout


def test_status_lists_the_families_in_80_columns(monkeypatch):
    reason = "IncompatibleTransformersError: transformers_apt.models.qwen3_5.modeling_qwen3_5 cannot be imported here"
    monkeypatch.setitem(patching._patch.families, "qwen3_5", reason)
    result = runner.invoke(app, ["status"], env={"COLUMNS": "80"})
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    for family, name in NAMES.items():
        default = "v1" if family == "qwen2_vl" else "off"
        on = any(
            line.split("  ")[0] == name and line.endswith(f"  on; without a setting '{default}'") for line in lines
        )
        assert on == (family != "qwen3_5"), name
    assert f"off: {reason}" in " ".join(" ".join(lines[-6:]).split())


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
        transformers_apt.engine.patching.record_failure(ValueError("a test broke it"))
        result = runner.invoke(app, ["status"])
    assert result.exit_code == 1
    assert "ValueError: a test broke it" in result.stdout


@pytest.mark.every_family(moe=True)
def test_demo_on_a_checkpoint_and_an_image(folder, family, processor, half_plain, tmp_path, monkeypatch):
    few = ({"patch_selection_method": "off"}, {"patch_selection_method": "budget", "alpha": 0.3})
    monkeypatch.setattr(comparison, "SETTINGS", few)
    half_plain.save(tmp_path / "photo.png")
    options = ["--model", str(folder), "--image", str(tmp_path / "photo.png"), "--prompt", "What?", "--repeats", "1"]
    result = runner.invoke(app, ["demo", *options, "--max-new-tokens", "3", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "224×168 px" in result.stdout
    assert "random" not in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    full = int(processor.image_processor(images=half_plain, **few[0])["image_grid_thw"].prod())
    assert ["off", str(full), "0", "0", str(full), "100%", str(full // 4), "0"] in lines
    patch_size = processor.image_processor.patch_size
    assert any(" ".join(f"{patch_size * size} px" for size in (1, 2, 4)) in " ".join(line) for line in lines)
    assert ("off by default" in result.stdout) == (family != "qwen2_vl")
    assert any(line[:1] == ["off"] and line[2::2] == ["(1.00)"] * 4 for line in lines)
    assert any(line[:2] == ["budget", "0.3"] and line[6:7] in (["29%"], ["30%"]) for line in lines)
    assert any(line[:2] == ["budget", "0.3"] and len(line) == 10 for line in lines)
    assert f"Answers of {folder}, as it is" in result.stdout.replace("\n", "")
    assert "✓" not in result.stdout and "✗" not in result.stdout, "no one knows what is right here"


def test_demo_reads_the_embedded_examples(monkeypatch):
    budget = {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"}
    monkeypatch.setattr(comparison, "SETTINGS", ({"patch_selection_method": "off"}, budget))
    monkeypatch.setattr(comparison, "EXAMPLE_SETTINGS", comparison.SETTINGS)
    result = runner.invoke(app, ["demo", "--repeats", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    first, *others = embedded.examples()
    assert f"Right is: {first.answer}" in result.stdout
    assert "✗" not in result.stdout
    assert result.stdout.count(f" {first.answer} ✓") == 2
    assert result.stdout.count("✓") == 2 * (1 + len(others))


def test_a_photo_of_ones_own_is_not_shown_to_a_model_that_knows_nothing_of_it(half_plain, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "decode_answer", lambda *args: pytest.fail("it was asked"))
    half_plain.save(tmp_path / "photo.png")
    result = runner.invoke(app, ["demo", str(tmp_path / "photo.png"), "--repeats", "1", "--device", "cpu"], env=NARROW)
    assert result.exit_code == 0, result.output
    assert "so it was not asked" in " ".join(result.stdout.split()) and "Answers of" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    table = result.stdout.split("vision patches, and tokens")[1].split("mse: upsample")[0]
    rows = [line for line in table.splitlines() if line[1:2].isalpha()]
    labels = [*map(comparison.short_label, comparison.SETTINGS)]
    assert [name for line in rows if (name := line.split("  ")[0].strip()) in labels] == 2 * labels, "one line each"


def test_work_is_seen_on_a_terminal_and_nowhere_else(monkeypatch, capsys):
    steps = ["loading", "timing"]
    for terminal in (True, False):
        monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
        monkeypatch.setenv("FORCE_COLOR", "1") if terminal else monkeypatch.delenv("FORCE_COLOR")
        with progress(len(steps)) as step:
            for what in steps:
                step(what)
        out, err = capsys.readouterr()
        assert out == "" and (steps[1] in err) == terminal
    seen = []
    monkeypatch.setattr(comparison, "SETTINGS", ({"patch_selection_method": "off"},))
    model, processor = asking.load_checkpoint(None, "cpu", "float32")
    image = load_photo(embedded.examples()[0].image)
    comparison.measure(model, processor, image, "Read the code.", max_new_tokens=1, repeats=2, step=seen.append)
    assert len(seen) == comparison.steps(2) == 4


def test_the_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"transformers-apt {transformers_apt.__version__}\n"


def test_demo_marks_a_wrong_answer_and_prints_any_answer():
    assert comparison.judged("12", "12") == "[green]12 ✓[/green]"
    assert comparison.judged("13", "12") == "[red]13 ✗[/red]"
    assert comparison.judged("[b]", None) == "\\[b]"
    assert comparison.judged("a\nb", None) == "'a\\nb'"


def test_an_installation_without_its_files_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model has no config.json; the package brings it along"):
        embedded.demo_model_path()
    with pytest.raises(FileNotFoundError, match=r"examples has no questions.jsonl"):
        embedded.examples()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "/nowhere/photo.jpg"], "/nowhere/photo.jpg cannot be read as an image: it does not exist"),
        (["/nowhere/photo.jpg"], "/nowhere/photo.jpg cannot be read as an image: it does not exist"),
        (["/nowhere/[red]:smile:.jpg"], "/nowhere/[red]:smile:.jpg cannot be read"),
        (["/nowhere/" + "x" * 300], "it does not exist; expected an image file"),
        (["."], ". cannot be read as an image: it is a folder"),
        (["a.jpg", "--image", "b.jpg"], "expected one image: IMAGE or --image, and not both"),
        (["a.jpg", "b.jpg"], "Got unexpected extra argument"),
        (["--colour"], "No such option: --colour"),
        (["--image", __file__], "cannot be read as an image"),
        (["--model", "/nowhere/checkpoint"], "/nowhere/checkpoint is not a folder"),
        (["--dtype", "int8"], "--dtype int8: expected one of float32"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(options, message):
    result = runner.invoke(app, ["demo", *options])
    assert result.exit_code == BAD_INPUT
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        *(["demo", "missing.jpg"], ["demo", "--image", "missing.jpg"], ["demo", "--model", "./missing"]),
        *(["demo", "--dtype", "int8"], ["visualize", "missing.jpg"], ["visualize", ".", "--model", "/missing"]),
        *(["app", "--model", "~/missing"], ["app", "--dtype", "int8"], ["visualize", ".", "--family", "missing"]),
        *(["visualize", ".", f"--{name}", "missing"] for name in ("patch-selection-method", "importance-method")),
        *(["visualize", ".", "--drop-tolerance", "missing"], ["visualize", ".", "--device", "missing"]),
    ],
)
def test_what_is_not_there_is_said_before_anything_slow_is_imported(arguments, tmp_path):
    script = "import sys\nfrom transformers_apt.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    run = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(
        run, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert result.returncode == BAD_INPUT and result.stderr.count("\n") == 1, result.stderr
    assert "missing" in result.stderr or "int8" in result.stderr
    assert not {"torch", "transformers", "gradio", "matplotlib"} & set(result.stdout.split())


def test_status_of_what_is_switched_off_needs_no_import():
    script = "import sys\nfrom transformers_apt.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    environment = {**os.environ, startup.SWITCH: "0"}
    result = subprocess.run([sys.executable, "-c", script, "status"], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "TRANSFORMERS_APT=0 switches it off" in " ".join(result.stdout.split())
    assert not {"torch", "transformers"} & set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["app", "--help"], ["status"]])
@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_of_another_encoding(arguments, locale, tmp_path):
    """`status` and the helps hold characters that it does not know."""
    environment = {**os.environ, **locale, "PYTHONCOERCECLOCALE": "0"}
    run = [sys.executable, "-c", "from transformers_apt.cli.main import main; main()", *arguments]
    result = subprocess.run(run, capture_output=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == b"", result.stderr
    assert result.stdout.isascii() and len(result.stdout) > 100


def test_a_photo_whose_name_looks_like_markup(folder, half_plain, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "SETTINGS", ({"patch_selection_method": "off"},))
    half_plain.save(tmp_path / "[red]:smile:.png")
    options = [
        "--model",
        str(folder),
        "--repeats",
        "1",
        "--max-new-tokens",
        "1",
        "--device",
        "cpu",
        "--prompt",
        "What?",
    ]
    result = runner.invoke(app, ["demo", str(tmp_path / "[red]:smile:.png"), *options])
    assert result.exit_code == 0 and "[red]:smile:.png, 224×168 px" in result.stdout.replace("\n", "")


def test_a_phones_photo_is_turned_upright(half_plain, tmp_path):
    exif = half_plain.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    half_plain.save(tmp_path / "phone.jpg", exif=exif)
    assert load_photo(tmp_path / "phone.jpg").size == (half_plain.height, half_plain.width)


def test_a_checkpoint_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    _, processor = asking.load_checkpoint(f"~/{folder.name}", "cpu", "float32")
    assert type(processor).__name__ == "Qwen2VLProcessor"


def test_a_checkpoint_of_another_family_is_refused(folder, monkeypatch):
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: object())
    result = runner.invoke(app, ["demo", "--model", str(folder)])
    assert result.exit_code == BAD_INPUT
    assert f"is for object: expected a checkpoint of one of the families that read adaptive patches, {SUPPORTED}" in (
        result.stderr
    )


def test_a_checkpoint_of_a_family_that_is_off_here_is_refused(folder, monkeypatch):
    monkeypatch.setitem(patching._patch.families, "qwen2_vl", "a test broke it")
    result = runner.invoke(app, ["demo", "--model", str(folder)])
    assert result.exit_code == BAD_INPUT
    assert "is of the family qwen2_vl, for which adaptive patches are off here: a test broke it" in result.stderr


@pytest.mark.every_family(moe=True)
def test_the_default_that_is_shown_is_the_processors(model, processor):
    assert asking.default_method(model) == reach.default_of(processor)


def test_main_is_the_installed_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["transformers-apt", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0


def test_the_choices_are_the_settings_own():
    assert sorted(visualize.METHODS) == sorted(settings.USED_BY) and sorted(visualize.MAPS) == sorted(
        IMPORTANCE_METHODS
    )


def test_labels():
    assert comparison.label({"patch_selection_method": "off"}) == "off (upstream)"
    assert comparison.label({"patch_selection_method": "v1"}) == "v1"
    settings = {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"}
    assert comparison.label(settings) == "budget 0.3 upsample_mse"
    settings = {"patch_selection_method": "v1", "thresholds": [16, 16], "drop_tolerance": 2, "predict_tolerance": 4}
    assert comparison.label(settings) == "v1 [16, 16] drop 2 predict 4"
    settings = {"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [36, 36]}
    assert comparison.label(settings) == "v1 upsample_mse [36, 36]"
