"""`transformers-apt practise` as a person meets it: what it prints, what it writes, and the exit code."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from transformers_apt.cli.main import app
from transformers_apt.cli.messages import BAD_INPUT
from transformers_apt.training.pairs import FilePairs, hold_out, read_rows

SMALL = ("--batch", 2, "--views", 1, "--max-new-tokens", 3, "--workers", 0, "--held-out", 1)


@pytest.fixture
def images(photos, tmp_path):
    """A folder with three photos, one of them deeper, two hidden ones, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for photo, name in zip(photos, ("a.png", "b.jpg", "more/c.png"), strict=True):
        photo.save(folder / name)
    for name in (".a.png", ".thumbnails/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        photos[0].save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def practise(folder, images, tmp_path):
    """`practise(*options)` runs the command on the tiny checkpoint."""
    runner = CliRunner(env={"COLUMNS": "200"})
    given = ["practise", "--model", folder, "--images", images, "--out", tmp_path / "out"]
    return lambda *options: runner.invoke(app, [str(part) for part in (*given, *options)])


def test_it_practises_judges_and_saves_and_goes_on(practise, images, tmp_path):
    for file in list(images.rglob("*.*g")):  # a random model learns nothing that holds for others
        shutil.copy(file, file.with_stem(f"{file.stem}_again"))
    prompts = ("--prompt", "Hi", "--prompt", "What is this?", "--lr", 1e-2)
    done = practise(*prompts, "--steps", 20, *SMALL)
    assert done.exit_code == 0, done.output
    assert "| off |" in done.stdout and "100.0 → 100.0" in done.stdout and "| budget 0.3 |" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80, "a terminal's width"
    assert done.stderr.endswith(f"saved in {tmp_path / 'out'}\n")
    out = tmp_path / "out"
    assert {"README.md", "branch.safetensors", "branch_config.json"} <= {path.name for path in out.iterdir()}
    log = out / "practice" / "log.jsonl"
    assert [json.loads(line)["step"] for line in log.open()] == list(range(1, 21))
    again = practise(*prompts, "--steps", 21, *SMALL)
    assert again.exit_code == 0, again.output
    assert [json.loads(line)["step"] for line in log.open()] == list(range(1, 22))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "21 steps of" in card and "20 steps of" not in card and "To be written" not in card
    assert again.stdout.strip() in card, "the card has the table that was printed"


def test_it_goes_on_in_the_branch_folder_of_the_checkpoint(practise, folder, tmp_path):
    """Where `load` looks: the second call meets its own branch, or a folder that has none yet."""
    checkpoint = shutil.copytree(folder, tmp_path / "checkpoint")
    place = (
        "--prompt",
        "Hi",
        "--model",
        checkpoint,
        "--out",
        checkpoint / "branch",
        *SMALL,
        "--lr",
        1e-30,
    )  # changes no bit
    (checkpoint / "branch" / "practice").mkdir(parents=True)
    for steps in (1, 2):
        done = practise(*place, "--steps", steps)
        assert done.exit_code == 0, done.output
    assert (checkpoint / "branch" / "branch.safetensors").exists()


def test_folders_that_hold_something_else_are_refused(practise, folder, tmp_path):
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        done = practise("--prompt", "Hi", "--out", out)
        assert done.exit_code == BAD_INPUT and f"{tmp_path / 'file'} is a file; expected a folder" in done.stderr
    done = practise("--prompt", "Hi", "--out", folder)
    assert done.exit_code == BAD_INPUT and "is the model's own folder; expected one of its own" in done.stderr


def test_a_prompt_with_a_place_for_an_image_is_refused(practise):
    done = practise("--prompt", "What is <|image_pad|>?")
    assert done.exit_code == BAD_INPUT and "has <|image_pad|> in it: leave it out" in done.stderr, done.output
    assert done.stderr.count("error:") == 1


def test_what_got_worse_is_one_line_and_exit_code_1(practise, tmp_path):
    done = practise("--prompt", "Hi", "--steps", 2, "--lr", 50, *SMALL)
    assert done.exit_code == 1 and done.stderr.count("worse: nothing was saved") == 1, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["practice"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected prompts, from a file of them (--prompts) or one by one (--prompt)"),
        (("--prompt", "Hi", "--prompts", "prompts.jsonl"), "and not both"),
        (("--prompts", "missing.jsonl"), "--prompts missing.jsonl does not exist; expected a JSONL file"),
        (("--prompt", "Hi", "--images", "missing"), "--images missing does not exist; expected a folder"),
        (("--prompt", "Hi", "--images", "empty"), "holds no images; expected files ending in .avif"),
        (("--prompt", "Hi", "--images", "one"), "is the only image; expected two or more"),
        (("--prompt", "Hi", "--student", "all"), "student='all': expected one of ['branch', 'lora']"),
        (("--prompt", "Hi", "--dtype", "int8"), "--dtype int8: expected one of float32"),
        (("--prompt", " "), "--prompt: prompt is ' '; expected a text"),
        (("--prompt", "Hi", "--seed", "-1"), "'--seed': Input should be greater"),
        (("--prompt", "Hi", "--save-minutes", "nan"), "save_every=nan: expected more than 0"),
        (("--prompt", "Hi", "--minutes", "0"), "minutes=0.0: expected more than 0"),
        (("--prompt", "Hi", "--model", "/missing"), "/missing"),
    ],
)
def test_bad_input_is_one_line(practise, photos, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"image": "a.png", "prompt": "Hi"}')
    for name in ("empty", "one"):
        (tmp_path / name).mkdir()
    photos[0].save(tmp_path / "one" / "a.png")
    done = practise(*options)
    assert done.exit_code == BAD_INPUT and message in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "line 2: JSONDecodeError"),
        ('["a.png", "Hi"]', "line 2: TypeError"),
        ('{"image": "a.png"}', "line 2: KeyError('prompt')"),
        ('{"image": "a.png", "prompt": " "}', "line 2: prompt is ' '; expected a text"),
        ('{"image": "a.png", "prompt": "\\ud800"}', "line 2: prompt is '\\ud800', half a character"),
        ('{"image": "d.png", "prompt": "Hi"}', "d.png' does not exist; expected a path in"),
    ],
)
def test_lines_that_cannot_be_used_are_named(images, tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"image": "more/c.png", "prompt": "Hi"}}\n{line}\n')
    with pytest.raises(ValueError) as caught:
        read_rows(images, [], file)
    assert message in str(caught.value)


def test_encodings_of_the_file_of_prompts(images, tmp_path):
    file, line = tmp_path / "prompts.jsonl", '{"image": "a.png", "prompt": "Où?\u2028"}'
    file.write_text(line, encoding="utf-8-sig")
    assert read_rows(images, [], file) == [(images / "a.png", "Où?\u2028")]
    file.write_bytes(line.replace("\u2028", "").encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl is not in UTF-8 \(invalid start byte at byte"):
        read_rows(images, [], file)


def test_images_that_cannot_be_read_are_left_out_and_named(images, caplog):
    (images / "cut.png").write_bytes((images / "a.png").read_bytes()[:300])
    (images / "none.jpg").write_text("no image")
    (images / "folder.png").mkdir()
    Image.new("RGB", (603, 3)).save(images / "long.png")
    rows = read_rows(images, ["Hi"], None)
    assert len(rows) == 6
    pairs = FilePairs(rows, seed=0)
    assert {pairs[index].key for index in range(6)} == {pair.key for pair in pairs.once()}
    assert len(pairs.once()) == 3
    for name in ("cut.png", "none.jpg", "long.png"):
        assert sum(name in record.message for record in caplog.records) == 1, name
    unreadable = FilePairs([row for row in rows if row[0].name == "cut.png"], seed=0)
    with pytest.raises(ValueError, match="none can be read"):
        unreadable[0]
    with pytest.raises(ValueError, match="none of the images held out can be read"):
        unreadable.once()


def test_no_more_is_held_out_than_was_asked_for():
    rows = [(Path(f"{index}.png"), f"{turn}") for index in range(9) for turn in range(20 if index < 4 else 1)]
    for seed in range(5):
        _, held_out = hold_out(rows, 4, seed)
        assert len(held_out) == 4
        _, held_out = hold_out(rows[:80], 4, seed)
        assert len(held_out) == 20, "one image at least"


def test_without_accelerate_the_error_says_what_to_install(practise, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    done = practise("--prompt", "Hi")
    assert done.exit_code == BAD_INPUT and "pip install 'transformers-apt[train]'" in done.stderr, done.output


def test_no_image_is_practised_on_and_judged_by(images):
    rows = read_rows(images, ["Hi", "What is this?"], None)
    assert len(rows) == 6 and {file.name for file, _ in rows} == {"a.png", "b.jpg", "c.png"}
    practice, held_out = hold_out(rows, 64, seed=0)
    assert sorted([*practice, *held_out]) == sorted(rows) and len(held_out) == 2
    assert not {file for file, _ in practice} & {file for file, _ in held_out}


def test_every_pair_comes_once_before_any_comes_again(images):
    pairs = FilePairs(read_rows(images, ["Hi", "What is this?"], None), seed=0)
    keys = [pairs[index].key for index in range(12)]
    assert len(set(keys[:6])) == 6 and sorted(keys[:6]) == sorted(keys[6:]) and keys[:6] != keys[6:]
    assert keys == [pairs[index].key for index in range(12)]
