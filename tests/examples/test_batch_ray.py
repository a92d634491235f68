"""The batch job: what is to do, what is done, and two actors that do it."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from transformers_apt.embedded import examples
from transformers_apt.models.settings import DEFAULTS, RECOMMENDED

pytest.importorskip("ray", reason="the batch job needs the extra `ray`: make test-vllm has it")
import batch_files
import batch_ray
import pyarrow
import pyarrow.parquet

EXAMPLES = Path(batch_ray.__file__).parent
ROOT = EXAMPLES.parent
QUESTION = "Read the code."
MADE_BY = {"model": "m", "settings": RECOMMENDED, "max_new_tokens": 8}


def rows(*names, prompt=QUESTION):
    return [{"image": name, "prompt": prompt} for name in names]


def options(**given):
    return dict.fromkeys(DEFAULTS) | given


# ---------------------------------------------------------------- what there is to do


def test_images_of_a_folder_and_its_folders(tmp_path):
    for folder in ("b", ".thumbnails"):
        (tmp_path / folder).mkdir()
    for name in ("b/2.JPG", "1.png", ".hidden.png", ".thumbnails/1.png", "notes.txt"):
        (tmp_path / name).touch()
    assert batch_files.images_in(tmp_path) == ["1.png", "b/2.JPG"]
    with pytest.raises(ValueError, match="holds no images"):
        batch_files.images_in(EXAMPLES)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_prompts_from_a_file(tmp_path, suffix):
    path = tmp_path / f"questions{suffix}"
    given = [{"image": "a.png", "prompt": "What?"}, {"image": "b.png", "prompt": None}]
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    else:
        path.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    assert batch_files.rows_of(path, QUESTION) == [*rows("a.png", prompt="What?"), *rows("b.png")]
    with pytest.raises(ValueError, match="row 2: prompt=None; expected a text"):
        batch_files.rows_of(path, None)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "image,prompt", r"a.csv ends in '.csv'; expected one of"),
        ("a.jsonl", '{"image": ', "a.jsonl cannot be read"),
        ("a.jsonl", '{"picture": "a.png"}', "row 1: image=None"),
        ("a.parquet", "no parquet", "a.parquet cannot be read"),
    ],
)
def test_files_of_prompts_that_cannot_be_used(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        batch_files.rows_of(tmp_path / name, QUESTION)


def test_only_what_is_missing_and_that_once():
    wanted = [*rows("a", "b", "a"), *rows("a", prompt="Why?")]
    assert batch_files.missing(wanted, rows("b")) == [*rows("a"), *rows("a", prompt="Why?")]


def test_every_setting_is_an_option():
    missing = DEFAULTS.keys() - inspect.signature(batch_ray.main).parameters.keys()
    assert missing == {"patch_parts"}, "a branch beside the checkpoint asks for these by itself"


def test_settings_that_are_recommended_changed_or_refused():
    assert batch_ray.settings_of(options()) == RECOMMENDED
    assert batch_ray.settings_of(options(drop_tolerance="off")) == RECOMMENDED | {"drop_tolerance": "off"}
    assert batch_ray.settings_of(options(patch_selection_method="off")) == {"patch_selection_method": "off"}
    fit = {"patch_selection_method": "fit", "max_language_tokens": 64}
    assert batch_ray.settings_of(options(max_language_tokens=64)) == fit
    with pytest.raises(ValueError, match=r"alpha=0.3 has no effect with patch_selection_method='v1'"):
        batch_ray.settings_of(options(alpha=0.3))
    with pytest.raises(ValueError, match="patch_selection_method='best': expected one of"):
        batch_ray.settings_of(options(patch_selection_method="best"))


# ---------------------------------------------------------------- in an actor


@pytest.fixture
def folder(tmp_path):
    """Three pictures, and a file that is none."""
    found = tmp_path / "pictures"
    found.mkdir()
    for example in examples()[:3]:
        shutil.copy(example.image, found)
    (found / "broken.jpg").write_bytes(b"no picture")
    return found


def test_one_that_cannot_be_read_or_asked_does_not_stop_the_others(folder):
    Image.new("RGB", (8, 8)).save(folder / "small.png")

    def ask(images, prompts):
        if any(image.size == (8, 8) for image in images):
            raise ValueError("too small")
        return [(prompt.upper(), len(images)) for prompt in prompts]

    names = ["broken.jpg", examples()[0].image.name, "small.png", "gone.png"]
    broken, good, small, gone = batch_ray.answer_rows(ask, folder, rows(*names))
    assert (good["answer"], good["prompt_tokens"], good["error"]) == (QUESTION.upper(), 1, None)
    assert "cannot be read as an image" in broken["error"]
    assert (small["answer"], small["error"]) == (None, "ValueError: too small")
    assert "gone.png" in gone["error"]


def test_an_engine_that_died_is_no_matter_of_one_image(folder):
    def ask(images, prompts):
        raise RuntimeError("dead")

    with pytest.raises(RuntimeError, match="dead"):
        batch_ray.answer_rows(ask, folder, rows(examples()[0].image.name))


# ---------------------------------------------------------------- the output folder


def table(*names, error=None):
    return batch_ray.table_of([dict.fromkeys(batch_ray.COLUMNS) | row | {"error": error} for row in rows(*names)])


def test_an_output_folder_is_of_one_job(tmp_path):
    batch_files.open_output(tmp_path / "out", MADE_BY)
    batch_files.open_output(tmp_path / "out", MADE_BY)
    with pytest.raises(ValueError, match="begun with max_new_tokens=8, not 16"):
        batch_files.open_output(tmp_path / "out", MADE_BY | {"max_new_tokens": 16})
    with pytest.raises(ValueError, match=r"no _job.json; expected a new folder"):
        batch_files.open_output(tmp_path, MADE_BY)


def test_errors_can_be_forgotten(tmp_path):
    batch_files.add([table("a"), table("b", error="bad")], tmp_path)
    batch_files.add([table("c")], tmp_path)
    assert sorted(row["image"] for row in batch_files.read_output(tmp_path)) == ["a", "b", "c"]
    assert sorted(row["image"] for row in batch_files.read_output(tmp_path, forget_errors=True)) == ["a", "c"]
    assert sorted(row["image"] for row in batch_files.read_output(tmp_path)) == ["a", "c"]
    assert pyarrow.parquet.read_table(tmp_path).num_rows == 2  # nothing else is in the way of whoever reads it


# ---------------------------------------------------------------- the whole


def test_two_actors_and_a_second_run(folder, tmp_path):
    """The embedded model reads its pictures; what is there is not done again."""
    output = tmp_path / "out"
    asked = [str(folder), str(output), "--prompt", QUESTION, "--engine", "transformers", "--max-new-tokens", "8"]
    actors = ["--actors", "2", "--cpus-per-actor", "0.5", "--batch-size", "1"]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "batch_ray.py", *asked, *actors], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 answered, 1 failed, 0 were there")
    first = pyarrow.parquet.read_table(output)
    found = {row["image"]: row for row in first.to_pylist()}
    for example in examples()[:3]:
        row = found[example.image.name]
        assert row["prompt_tokens"] > 20 and row["answer"] and row["error"] is None
    assert "cannot be read as an image" in found["broken.jpg"]["error"]
    again = CliRunner().invoke(batch_ray.app, asked)  # nothing is left, so no Ray is started
    assert again.output.startswith("0 answered, 0 failed, 4 were there"), again.output
    assert pyarrow.parquet.read_table(output).equals(first)
