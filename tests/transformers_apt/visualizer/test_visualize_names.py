"""Files may have any name that a file system allows: each gets a folder and a line, and none stops the others."""

import csv
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transformers_apt.cli.messages import BAD_INPUT
from transformers_apt.visualizer import files as visualize_files
from transformers_apt.visualizer.files import SUMMARY, TableError
from transformers_apt.visualizer.names import cut, folder_name, folder_names, longest_name, readable

OFF = ["--patch-selection-method", "off"]
ODD = [
    os.fsdecode(b"caf\xe9.png"),
    "a" * 251 + ".png",
    "é" * 120 + ".png",
    "字" * 80 + ".png",
    "new\nline.png",
    "return\r.png",
    "\x1b[31mred.png",
    "[red]:smile:.png",
    "$(touch x); `y` 'z' \"q\".png",
    "back\\slash.png",
    "\u202egnp.exe.png",
    "--output.png",
    "con.png",
    "summary.csv.png",
    "Summary.CSV.jpg",
    " .png",
    "photo..png",
    "photo .png",
    "photo.png",
    "photo.jpg",
    "PHOTO.PNG",
    "=1+1,2.png",
    "e\u0301.png",
    "é.png",
]


def same_place(name):
    """What a file system that is lenient about names makes of one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def check(names, longest=255):
    assert len({same_place(name) for name in names}) == len(names), names
    for name in names:
        assert name.strip(". ") and name not in (".", "..") and "/" not in name and "\\" not in name
        assert 0 < len(name.encode()) <= longest
        assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
        assert name.rstrip(". ") == name and same_place(name) != SUMMARY


# ---------------------------------------------------------------- the names


def test_plain_names_stay_as_they_are():
    names = [
        "photo.jpg",
        "my photo (2).png",
        "a.b.c.webp",
        "2024-01-01 10.00.00.png",
        "Füße.png",
        "写真.jpg",
        ".x.png",
    ]
    assert folder_names([Path(name) for name in names]) == [Path(name).stem for name in names]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        *(("..png", "_"), ("...png", "__"), (" .png", "_"), ("photo..png", "photo_"), ("a. .png", "a__")),
        *(("con.png", "con_"), ("NUL.jpg", "NUL_"), ("com1.tar.png", "com1.tar_"), ("console.png", "console")),
        *(
            ("a\nb\x1b.png", "a_b_"),
            ("a\\b.png", "a_b"),
            (os.fsdecode(b"caf\xe9.png"), "caf_"),
            ("a\u202eb.png", "a_b"),
        ),
    ],
)
def test_what_cannot_be_a_folders_name_everywhere(file, folder):
    assert folder_name(Path(file)) == folder


def test_names_that_are_one_on_some_file_system():
    def names(*files, **options):
        return folder_names([Path(file) for file in files], **options)

    assert names("A.png", "a.png") == ["A.png", "a.png (2)"]
    assert names("é.png", "e\u0301.png") == ["é.png", "e\u0301.png (2)"]
    assert names("a\n.png", "a\r.png", "a\t.png") == ["a_", "a_ (2)", "a_ (3)"]
    assert names("summary.csv.png", "Summary.CSV.jpg", taken=(SUMMARY,)) == ["summary.csv.png", "Summary.CSV.jpg"]
    assert names("summary.csv.png", taken=(SUMMARY,)) == ["summary.csv.png"]


def test_long_names_are_cut_where_a_file_system_allows_less():
    long = [Path("字" * 60 + letter + ".png") for letter in "ab"]
    assert folder_names(long) == [path.stem for path in long]
    assert folder_names(long, longest=143) == ["字" * 47, "字" * 46 + " (2)"]
    assert cut("aé", 2) == "a"


@pytest.mark.parametrize(
    ("found", "longest"), [(143, 143), (255, 255), (10**6, 255), (-1, 32), (OSError, 255), (None, 255)]
)
def test_what_the_file_system_says_counts(monkeypatch, tmp_path, found, longest):
    def says(folder, name):
        if found is OSError:
            raise OSError
        return found

    if found is None:
        monkeypatch.delattr(os, "pathconf")
    else:
        monkeypatch.setattr(os, "pathconf", says)
    assert longest_name(tmp_path) == longest


def test_readable():
    assert readable("Füße [b] 写真 ✓") == "Füße [b] 写真 ✓"
    assert readable(os.fsdecode(b"caf\xe9\n\x1b[31m")) == r"caf\xe9\n\x1b[31m"
    assert readable("\ud800\u202e\u2028") == r"\ud800\u202e\u2028"


FILE_NAMES = st.text(
    st.characters(codec=None, exclude_characters="/\0") | st.sampled_from("aAéE. \n"), min_size=1, max_size=12
)


@pytest.mark.generated
@given(st.lists(FILE_NAMES.filter(lambda name: name not in (".", "..")), max_size=8), st.sampled_from([32, 143, 255]))
def test_any_names(names, longest):
    paths = [Path(name + ".png") for name in names]
    check(folder_names(paths, taken=(SUMMARY,), longest=longest), longest)


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def quick(monkeypatch):
    """Heatmaps take most of the time, and no name shows in them."""
    dot = Image.new("RGB", (1, 1))
    monkeypatch.setattr(visualize_files, "draw_heatmap", lambda *arguments, **options: dot)
    monkeypatch.setattr(visualize_files, "add_legend", lambda *arguments: dot)


@pytest.fixture
def odd_folder(tmp_path):
    """A folder with a picture under each odd name, and one that is damaged."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ODD:
        Image.new("RGB", (56, 56)).save(folder / name, "PNG")
    (folder / os.fsdecode(b"broken\xff[b].png")).write_bytes(b"no image")
    return folder


def table(out):
    with (out / SUMMARY).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_image_of_a_folder_whatever_it_is_called(odd_folder, tmp_path, visualize_command, quick):
    out = tmp_path / "out"
    result = visualize_command(odd_folder, "-o", out, *OFF)
    assert result.exit_code == BAD_INPUT and result.stderr.count("\n") == 1, result.output
    assert r"broken\xff[b].png cannot be read as an image" in result.stderr
    assert f"{len(ODD)} images drawn, 1 could not be -> {out / SUMMARY}" in result.stdout
    assert result.stdout.count("\n") == len(ODD) + 1 and "\x1b" not in result.stdout and "\r" not in result.stdout
    rows = table(out)
    names = [row["folder"] for row in rows if not row["error"]]
    check(names)
    assert sorted(os.listdir(out)) == sorted([*names, SUMMARY])
    for row in rows:
        assert row["image"] == readable(row["image"]) and "\n" not in row["image"]
        if not row["error"]:
            stats = json.loads((out / row["folder"] / "stats.json").read_text(encoding="utf-8"))
            assert stats["image"] == row["image"]
    # and once more: the same images go to the same places
    assert visualize_command(odd_folder, "-o", out, *OFF).exit_code == BAD_INPUT
    assert sorted(os.listdir(out)) == sorted([*names, SUMMARY])


@pytest.mark.parametrize("name", [*ODD, "..png", "...png", ".png"])
def test_one_image_whatever_it_is_called(photo, tmp_path, visualize_command, name, quick):
    file = photo.rename(photo.with_name(name))
    out = tmp_path / "out"
    result = visualize_command("--input-image", file, "-o", out, *OFF)
    assert result.exit_code == 0, result.output
    (folder,) = os.listdir(out)
    assert folder == folder_name(file) and (out / folder / "stats.json").is_file()
    assert result.stdout.count("\n") == 2 and result.stdout.endswith(f"-> {out / folder}\n")


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "utf-8"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
)
def test_terminals_of_any_encoding(tmp_path, locale):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in (os.fsdecode(b"caf\xe9.png"), "字.png"):
        Image.new("RGB", (56, 56)).save(folder / name, "PNG")
    (folder / os.fsdecode(b"broken\xff[b].png")).write_bytes(b"no image")
    script = ["-c", "from transformers_apt.cli.main import main; main()", "visualize", str(folder), "-o", str(out)]
    command = [sys.executable, *script, "--device", "cpu", *OFF]
    result = subprocess.run(command, capture_output=True, env={**os.environ, **locale})
    assert result.returncode == BAD_INPUT and b"Traceback" not in result.stderr, result.stderr
    assert b"2 images drawn, 1 could not be" in result.stdout and len(table(out)) == 3
    assert rb"broken\xff[b].png cannot be read as an image" in result.stderr
    if locale.get("PYTHONIOENCODING") == "ascii":
        assert rb"caf\xe9.png: 56x56 px, resized to 56x56 (" in result.stdout
        assert rb"\u5b57.png: 56x56 px" in result.stdout and (result.stdout + result.stderr).isascii()


# ---------------------------------------------------------------- one that cannot be written


def three(photo):
    for name in ("a.png", "b.png", "c.png"):
        photo.with_name(name).write_bytes(photo.read_bytes())
    photo.unlink()
    return photo.parent


FAILURES = [
    OSError(28, "No space left on device"),
    PermissionError(13, "Permission denied"),
    MemoryError(),
    RuntimeError("something new"),
    UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("step", ["_write", "examine", "load_picture", "_summary_row"])
def test_whatever_happens_to_one_the_others_are_drawn(
    photo, tmp_path, monkeypatch, visualize_command, failure, step, quick
):
    work, calls = getattr(visualize_files, step), []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise failure
        return work(*arguments)

    monkeypatch.setattr(visualize_files, step, fails_once)
    out = tmp_path / "out"
    result = visualize_command(three(photo), "-o", out, *OFF)
    assert result.exit_code == BAD_INPUT and result.stderr.count("\n") == 1
    assert "b.png" in result.stderr and "2 images drawn, 1 could not be" in result.stdout
    rows = table(out)
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert {"a", "c", SUMMARY} <= set(os.listdir(out)) <= {"a", "b", "c", SUMMARY}


@pytest.mark.parametrize("thing", ["file", "folder", "link"])
def test_an_output_path_that_is_something_else(photo, tmp_path, visualize_command, thing):
    out = tmp_path / "out"
    out.mkdir()
    if thing == "file":
        (out / "b").write_text("years of work")
    elif thing == "folder":
        (out / "b").mkdir()
        (out / "b" / "thesis.tex").write_text("years of work")
    else:
        (out / "b").symlink_to(tmp_path / "nowhere")
    result = visualize_command(three(photo), "-o", out, *OFF)
    assert result.exit_code == BAD_INPUT and "did not write" in result.stderr
    assert "2 images drawn, 1 could not be" in result.stdout and len(table(out)) == 3
    assert os.path.lexists(out / "b") and {"a", "c"} < set(os.listdir(out))


def test_a_table_that_cannot_be_written_hides_no_result(photo, tmp_path, monkeypatch, visualize_command):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    folder, out = three(photo), tmp_path / "out"
    monkeypatch.setattr(os, "replace", full)
    result = visualize_command(folder, "-o", out, *OFF)
    assert result.exit_code == BAD_INPUT and f"{SUMMARY} cannot be written (" in result.stderr
    assert f"3 images drawn -> {out}\n" in result.stdout and sorted(os.listdir(out)) == ["a", "b", "c"]
    with pytest.raises(TableError, match="make room for it") as caught:
        visualize_files.visualize_folder(folder, out, visualize_files_processor())
    assert len(caught.value.found) == 3 and caught.value.errors == []


def visualize_files_processor():
    from transformers_apt.visualizer.view import load_processor

    return load_processor(patch_selection_method="off")


@pytest.mark.parametrize("thing", ["folder", "link", "bytes"])
def test_a_table_that_is_none(photo, tmp_path, visualize_command, thing):
    out = tmp_path / "out"
    out.mkdir()
    if thing == "folder":
        (out / SUMMARY).mkdir()
    elif thing == "link":
        (out / SUMMARY).symlink_to(tmp_path / "nowhere")
    else:
        (out / SUMMARY).write_bytes(b"\xff\xfe\x00")
    result = visualize_command(photo.parent, "-o", out, *OFF)
    assert result.exit_code == BAD_INPUT and "was not written by this command" in result.stderr
    assert result.stderr.count("\n") == 1 and os.listdir(out) == [SUMMARY]


@pytest.mark.parametrize("name", ["x" * 300 + ".png", os.fsdecode(b"\xff.png"), "[red].png", "a\nb\x1b.png"])
def test_a_file_that_is_not_there_is_one_line(visualize_command, name):
    result = visualize_command(f"/nowhere/{name}")
    assert result.exit_code == BAD_INPUT and result.stderr.count("\n") == 1
    assert "does not exist; expected" in result.stderr and "\x1b" not in result.stderr
