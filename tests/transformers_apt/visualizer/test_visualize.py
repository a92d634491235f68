"""The visualiser shows what the processor feeds the model; its files are whole or not there, its errors short."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data
from transformers import Qwen2VLImageProcessor

from apt_code.patch_selection import select_patches_by_threshold
from apt_code.patch_tokenizer import PatchTokenizer
from apt_code.visualization import PATCH_COLOURS, reconstruct, to_picture
from transformers_apt.cli.messages import BAD_INPUT
from transformers_apt.embedded.tiny_checkpoint import save_checkpoint
from transformers_apt.models import families, reach
from transformers_apt.models.stats import image_layouts, patch_stats
from transformers_apt.visualizer import files as visualize_files
from transformers_apt.visualizer import view as visualize
from transformers_apt.visualizer.view import examine, load_picture, load_processor, stats_of

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden" / "stats_astronaut_budget.json"
FILES = [
    "01_heatmaps/importance_map_scale_14.png",
    "01_heatmaps/importance_map_scale_28.png",
    "01_heatmaps/importance_map_scale_56.png",
    "02_patches_grid/patches_visualization.jpg",
    "02_patches_grid/reconstruction.jpg",
    "03_original_resized/original_image.jpg",
    "03_original_resized/resized_image.jpg",
    "overview.jpg",
    "stats.json",
]
BUDGET = ["--patch-selection-method", "budget", "--alpha", "0.3"]


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def odd_photo(tmp_path):
    """A size that is resized, and an EXIF tag that says the camera was turned."""
    picture = Image.fromarray(data.astronaut()[:201, :333])
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "odd.jpg", exif=exif)
    return tmp_path / "odd.jpg"


# ---------------------------------------------------------------- it shows what the processor does

SETTINGS = [
    {},
    {"patch_selection_method": "v1", "thresholds": [5.0, 4.0]},
    {"patch_selection_method": "v2", "alpha": 0.9},
    {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"},
    {"patch_selection_method": "budget", "alpha": 0.5, "importance_method": "laplacian"},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse", "drop_tolerance": 20},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse", "predict_tolerance": 100},
    {"patch_selection_method": "off"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_layout_and_pixels_are_the_processors(odd_photo, settings):
    upright = ImageOps.exif_transpose(Image.open(odd_photo))
    fed = Qwen2VLImageProcessor()(images=upright, return_tensors="pt", **settings)
    view = examine(load_picture(odd_photo), load_processor(**settings))
    assert view.original.size == (201, 333) and view.original.tobytes() == upright.tobytes()
    assert view.resized.shape == (3, 336, 196) and view.resized.dtype == torch.uint8
    assert torch.equal(view.layout.patches, fed.get("image_patch_layout", view.layout.patches))
    assert (
        (view.inherited is not None)
        == bool(view.layout.dropped_cells)
        == any("tolerance" in name for name in settings)
    )
    stats = patch_stats(fed)[0]
    assert view.layout.num_patches == stats["vision_patches"]
    # what was shown, fed as it is, is what was fed: every pixel of it that is kept
    again = Qwen2VLImageProcessor()(images=view.resized, do_resize=False, return_tensors="pt", **settings)
    assert torch.equal(again["pixel_values"], fed["pixel_values"])
    off = {"patch_selection_method": "off", "return_tensors": "pt"}
    whole = Qwen2VLImageProcessor()(images=upright, **off)
    again = Qwen2VLImageProcessor()(images=view.resized, do_resize=False, **off)
    assert torch.equal(again["pixel_values"], whole["pixel_values"])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_transparent_and_grey_images_are_what_the_processor_makes_of_them(crop, tmp_path, mode):
    picture = crop.convert(mode)
    if mode.endswith("A"):
        picture.putalpha(Image.linear_gradient("L").resize(crop.size))
    picture.save(tmp_path / "photo.png")
    view = examine(load_picture(tmp_path / "photo.png"), load_processor())
    fed = Qwen2VLImageProcessor()(images=Image.open(tmp_path / "photo.png"), return_tensors="pt")
    again = Qwen2VLImageProcessor()(images=view.resized, return_tensors="pt")
    assert torch.equal(again["pixel_values"], fed["pixel_values"])
    assert view.original.mode == "RGB" and view.original.size == crop.size
    assert np.array_equal(np.asarray(view.original), view.resized.permute(1, 2, 0))  # this size is not resized


def test_settings_of_one_call_win_over_the_processors(crop):
    processor = load_processor(patch_selection_method="budget", alpha=0.3)
    view = examine(crop, processor, patch_selection_method="off")
    assert view.layout.num_patches == 140 and processor.patch_selection_method == "budget"
    with pytest.raises(TypeError, match="alhpa"):
        examine(crop, processor, alhpa=0.3)


@pytest.mark.parametrize("importance", ["entropy", "laplacian", "upsample_l4", "upsample_mse"])
@pytest.mark.parametrize("setting", [{"patch_selection_method": "v1"}, {"patch_selection_method": "v2", "alpha": 0.7}])
def test_the_thresholds_it_reports_give_the_tiling_it_shows(half_plain, importance, setting):
    view = examine(half_plain, load_processor(importance_method=importance, **setting))
    maps = {side: values[None] for side, values in view.maps.items()}
    masks = select_patches_by_threshold(maps, list(view.settings["thresholds"].values()))
    assert torch.equal(PatchTokenizer.layouts_of(masks)[0].patches, view.layout.patches)
    assert len(view.layout.patches_by_size) > 1


def test_no_thresholds_where_nothing_can_stay_whole():
    picture = Image.new("RGB", (56, 56))
    view = examine(picture, load_processor(patch_selection_method="v2", patch_size=28))
    assert view.settings["thresholds"] == {56: 0.0, 112: 0.0}  # the 56-px cell is complete, and plain
    maps = {14: torch.zeros(1, 1), 28: torch.full((1, 1), 1e6), 56: torch.full((1, 1), 1e6)}
    assert visualize._thresholds_used({"patch_selection_method": "v2", "alpha": 1.0}, [3, 2], maps) is None


def test_other_patch_sizes(crop):
    view = examine(crop, load_processor(patch_size=16, temporal_patch_size=1))
    assert view.resized.shape == (3, 128, 192) and set(view.maps) == {16, 32, 64}
    stats = stats_of(view, "photo.png")
    assert stats["processor"]["temporal_patch_size"] == 1 and set(stats["patches"]["by_px"]) == {"16", "32", "64"}


def test_a_checkpoints_own_settings(folder, photo, tmp_path, visualize_command):
    processor = Qwen2VLImageProcessor.from_pretrained(folder)
    processor.patch_selection_method, processor.alpha = "budget", 0.4
    processor.save_pretrained(tmp_path / "checkpoint")
    assert visualize_command(photo, "-o", tmp_path / "out", "--model", tmp_path / "checkpoint").exit_code == 0
    stats = json.loads((tmp_path / "out/photo/stats.json").read_text())
    assert (stats["patch_selection_method"], stats["alpha"]) == ("budget", 0.4)
    assert stats["processor"]["max_pixels"] == processor.size["longest_edge"]


@pytest.mark.every_family(moe=True)
@pytest.mark.parametrize("method", [None, "budget"])
def test_every_family_is_drawn_as_its_processor_sees_it(folder, family, processor, photo, tmp_path, method):
    given = {} if method is None else {"patch_selection_method": method, "alpha": 0.3}
    upright = Image.open(photo).resize((333, 201))
    image_processor = load_processor(str(folder), **given)
    view = examine(upright, image_processor)
    fed = processor(images=upright, text=processor.image_token, images_kwargs=given, return_tensors="pt")
    assert torch.equal(view.layout.patches, image_layouts(fed)[0].patches)
    assert view.settings["patch_selection_method"] == (method or reach.default_of(processor))
    # what was shown, fed as it is, is what was fed, with whatever mean and deviation the family normalises
    again = processor.image_processor(
        images=view.resized, do_resize=False, return_tensors="pt", **(given or {"patch_selection_method": "off"})
    )
    if given or family != "qwen2_vl":
        assert torch.equal(again["pixel_values"], fed["pixel_values"])
    patch_size = processor.image_processor.patch_size
    sides = [patch_size * size for size in (1, 2, 4)]
    assert list(view.maps) == sides
    assert list(stats_of(view, "photo.png")["patches"]["by_px"]) == [str(side) for side in sides]
    resized = to_picture(view.resized)
    error = np.abs(np.asarray(upright.resize(resized.size), dtype=int) - np.asarray(resized, dtype=int)).mean()
    assert error < 4, "the picture that the model gets, not its normalised numbers"


@pytest.mark.every_family
def test_the_files_of_every_family(folder, processor, photo, tmp_path, visualize_command):
    result = visualize_command(photo, "-o", tmp_path / "out", "--model", folder, *BUDGET)
    assert result.exit_code == 0 and result.stderr == "", result.output
    sides = [processor.image_processor.patch_size * size for size in (1, 2, 4)]
    maps = [f"photo/01_heatmaps/importance_map_scale_{side}.png" for side in sides]
    assert files_in(tmp_path / "out")[:3] == maps
    assert all(f" of {side} px" in result.stdout for side in sides)


def test_a_later_familys_default_is_named(tmp_path, photo, visualize_command):
    save_checkpoint(tmp_path / "checkpoint", family="qwen2_5_vl")
    result = visualize_command(photo, "-o", tmp_path / "out", "--model", tmp_path / "checkpoint")
    assert result.exit_code == 0 and "140 of 140 patches" in result.stdout
    assert result.stderr.startswith("note: nothing is selected: 'off' is this image processor's setting")


def test_a_checkpoint_of_another_family_is_refused(folder, tmp_path, photo, visualize_command):
    Qwen2VLImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "glm4v"}')
    result = visualize_command(photo, "-o", tmp_path / "out", "--model", tmp_path / "other")
    assert result.exit_code == BAD_INPUT and len(result.stderr.splitlines()) == 1
    assert "is of the family glm4v" in result.stderr and families.SUPPORTED in result.stderr


# ---------------------------------------------------------------- the files


def test_the_file_tree_and_the_numbers(photo, tmp_path, visualize_command):
    logging.Logger.warning_once.cache_clear()
    result = visualize_command(photo, "-o", tmp_path / "out", *BUDGET)
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "out") == [f"photo/{name}" for name in FILES]
    found = json.loads((tmp_path / "out/photo/stats.json").read_text(encoding="utf-8"))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(found) == list(golden)
    for key, expected in golden.items():
        if key == "importance":
            assert {side: pytest.approx(values, abs=1e-4) for side, values in expected.items()} == found[key]
        else:
            assert found[key] == expected, key
    assert "41 of 140 patches (29.3%, target 30.0%), 26 of 35 language tokens" in result.stdout
    assert result.stderr == ""


def test_the_pictures(photo, crop, tmp_path, visualize_command):
    assert visualize_command("--input-image", photo, "--output", tmp_path, *BUDGET).exit_code == 0
    view = examine(crop, load_processor(patch_selection_method="budget", alpha=0.3))

    def read(name):
        return Image.open(tmp_path / "photo" / name).convert("RGB")

    def error(name, expected):
        return np.abs(np.asarray(read(name), dtype=int) - np.asarray(expected, dtype=int)).mean()

    assert error(FILES[5], crop) < 3 and error(FILES[6], crop) < 3
    seen = reconstruct(view.resized, view.layout, 14).permute(1, 2, 0)
    assert error(FILES[4], seen) < 3
    tiling = read(FILES[3])
    assert tiling.width == 4 * 196 and tiling.height > 4 * 140
    for row, col, size in view.layout.patches.tolist():
        side = 56 * size
        pixel = tiling.getpixel((56 * col + 1, 56 * row + side // 2))
        assert np.abs(np.subtract(pixel, PATCH_COLOURS[size])).max() < 60, (row, col, size)
    for name in FILES[:3]:
        assert min(read(name).size) > 300


def test_running_again_replaces_the_folder_and_nothing_else(photo, tmp_path, visualize_command):
    out = tmp_path / "out"
    assert visualize_command(photo, "-o", out).exit_code == 0
    (out / "photo" / ".DS_Store").touch()
    assert visualize_command(photo, "-o", out, *BUDGET).exit_code == 0
    assert files_in(out) == [f"photo/{name}" for name in FILES]
    assert json.loads((out / "photo/stats.json").read_text())["alpha"] == 0.3

    (out / "photo" / "thesis.tex").write_text("years of work")
    result = visualize_command(photo, "-o", out)
    assert result.exit_code == BAD_INPUT and "thesis.tex" in result.stderr
    assert (out / "photo" / "thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_nothing_behind(photo, tmp_path, monkeypatch, visualize_command):
    out = tmp_path / "out"
    assert visualize_command(photo, "-o", out).exit_code == 0
    before = (out / "photo/stats.json").read_text()

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(visualize_files, "add_legend", full_disk)
    result = visualize_command(photo, "-o", out, *BUDGET)
    assert result.exit_code == BAD_INPUT and "No space left" in result.stderr
    assert os.listdir(out) == ["photo"] and (out / "photo/stats.json").read_text() == before
    # and where the last step fails
    monkeypatch.undo()
    rename = Path.rename

    def stuck(self, target):
        if self.name.endswith(".partial"):
            raise OSError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stuck)
    assert visualize_command(photo, "-o", out, *BUDGET).exit_code == BAD_INPUT
    assert os.listdir(out) == ["photo"] and (out / "photo/stats.json").read_text() == before


# ---------------------------------------------------------------- folders


def test_a_folder_with_a_broken_image(photo, tmp_path, visualize_command):
    photo.with_name("broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a JPEG")
    photo.with_name("notes.txt").write_text("not an image")
    photo.with_name(".hidden.png").write_text("nor this")
    Image.new("RGB", (56, 84), "white").save(photo.with_name("photo.bmp"))
    out = tmp_path / "out"
    result = visualize_command(photo.parent, "-o", out, *BUDGET)
    assert result.exit_code == BAD_INPUT
    assert len(result.stderr.strip().splitlines()) == 1 and "broken.jpg cannot be read" in result.stderr
    assert files_in(out) == sorted(
        [f"photo.bmp/{name}" for name in FILES] + [f"photo.png/{name}" for name in FILES] + ["summary.csv"]
    )
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["broken.jpg", "photo.bmp", "photo.png"]
    assert "cannot be read" in rows["broken.jpg"]["error"] and rows["broken.jpg"]["patches"] == ""
    golden = json.loads(GOLDEN.read_text())
    row = rows["photo.png"]
    assert (row["folder"], row["error"], row["retention_target"]) == ("photo.png", "", "0.3")
    assert (row["original_width"], row["grid_h"], row["grid_w"]) == ("196", "10", "14")
    counts = [int(row[name]) for name in ("patches_fine", "patches_middle", "patches_coarse")]
    assert counts == list(golden["patches"]["by_px"].values()) and int(row["patches"]) == sum(counts)
    assert int(row["language_tokens"]) == golden["language_tokens"]["kept"] and row["dropped"] == "0"
    assert "2 images drawn, 1 could not be" in result.stdout


def test_a_folder_again_and_a_table_of_someone_else(photo, tmp_path, visualize_command):
    out = tmp_path / "out"
    assert visualize_command(photo.parent, "-o", out).exit_code == 0
    assert visualize_command(photo.parent, "-o", out).exit_code == 0
    assert sorted(os.listdir(out)) == ["photo", "summary.csv"]
    table = (out / "summary.csv").read_text()
    (out / "summary.csv").write_text(table.replace(",dropped\n", "\n"))  # as releases without that column wrote it
    assert visualize_command(photo.parent, "-o", out, "--drop-tolerance", "2").exit_code == 0
    assert (out / "summary.csv").read_text().startswith(table.split("\n")[0] + "\n")
    (out / "summary.csv").write_text("month,euros\n1,2\n")
    result = visualize_command(photo.parent, "-o", out)
    assert result.exit_code == BAD_INPUT and "was not written by this command" in result.stderr
    assert (out / "summary.csv").read_text() == "month,euros\n1,2\n"


def test_names_of_the_folders():
    def names(*files):
        return visualize_files.folder_names([Path(name) for name in files])

    assert names("a.jpg", "b.png") == ["a", "b"]
    assert names("a.jpg", "A.png", "b.png") == ["a.jpg", "A.png", "b"]
    assert names("a.jpg", "a.jpg.png", "a.png") == ["a.jpg", "a.jpg.png", "a.png"]


def test_the_drawing_is_larger_where_the_image_is_small():
    class Sized:
        def __init__(self, *shape):
            self.resized = torch.empty(3, *shape)

    assert [visualize_files.drawing_scale(Sized(h, 28)) for h in (140, 1008, 2800)] == [4, 2, 1]


# ---------------------------------------------------------------- notes


def test_notes_say_what_was_ignored_and_what_could_not_be_met(photo, tmp_path, visualize_command):
    result = visualize_command(
        photo, "-o", tmp_path, "--thresholds", "3", "2", "--patch-selection-method", "budget", "--alpha", "0"
    )
    assert result.exit_code == 0
    notes = json.loads((tmp_path / "photo/stats.json").read_text())["notes"]
    assert notes[0] == "thresholds=[3.0, 2.0] is ignored by 'budget'" and "smallest alpha" in notes[1]
    assert [line.startswith("note: ") for line in result.stderr.strip().splitlines()] == [True, True]
    result = visualize_command(photo.parent, "-o", tmp_path, "--alpha", "0.5")
    assert result.stderr.strip() == "note: alpha=0.5 is ignored by 'v1'"


def test_an_infinite_threshold_is_still_json(crop):
    stats = stats_of(examine(crop, load_processor(thresholds=[float("inf"), 2.0])), "photo.png")
    assert stats["thresholds"] == {"28": "inf", "56": 2.0}


# ---------------------------------------------------------------- the scripts


def _environment():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "PYTHON": sys.executable}


def test_the_debug_scripts(photo, tmp_path):
    arguments = [str(photo), "-o", str(tmp_path / "out"), "--device", "cpu", "--thresholds", "3", "2"]
    script = [sys.executable, str(ROOT / "debug/visualize_patches.py"), *arguments]
    result = subprocess.run(script, capture_output=True, text=True, env=_environment(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # the first use of adaptive patches in this process, but on request
    assert files_in(tmp_path / "out") == [f"photo/{name}" for name in FILES]
    shell = [str(ROOT / "debug/run_visualize.sh"), "nowhere.jpg"]
    result = subprocess.run(shell, capture_output=True, text=True, env=_environment(), cwd=tmp_path)
    assert result.returncode == BAD_INPUT
    assert result.stderr.splitlines() == [
        "error: nowhere.jpg does not exist; expected an image file or a folder of them"
    ]


def test_the_debug_script_without_the_package(tmp_path):
    script = [sys.executable, "-S", str(ROOT / "debug/visualize_patches.py")]
    result = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    assert result.returncode == 1 and "lacks transformers-apt; run `make venv`" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
