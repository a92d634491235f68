"""The sheet that explains itself: its pictures, figures and settings, and the limit that an image was resized to."""

import numpy as np
import pytest
from PIL import Image

from apt_code.visualization import PATCH_COLOURS
from transformers_apt.models import families
from transformers_apt.visualizer.sheet import describe_settings, overview
from transformers_apt.visualizer.view import examine, load_processor, stats_of


@pytest.mark.parametrize("size", [(196, 140), (600, 120), (60, 700)])
def test_one_sheet_shows_everything_at_whatever_shape(crop, size):
    view = examine(crop.resize(size), load_processor(importance_method="upsample_mse", drop_tolerance=8))
    stats = stats_of(view, "a photo.png", "at most 1.0 megapixels, " + "somebody's limit " * 20)
    tiling, seen = (Image.new("RGB", view.original.size, colour) for colour in ("red", "lime"))
    sheet = overview(view, stats, tiling, seen)
    assert sheet.width == 1920 and sheet.height < 9000
    pixels = np.asarray(sheet).reshape(-1, 3)
    shown = [(pixels == colour).all(1).sum() for colour in ((255, 0, 0), (0, 255, 0))]
    assert shown[0] == shown[1] > 10_000, "both pictures, as large as each other"
    assert all((pixels == PATCH_COLOURS[one]).all(1).sum() >= 24 * 24 for one in view.layout.patches_by_size)
    assert describe_settings(stats).split("     ") == [
        *("method: v1", "map: upsample_mse (grey levels²)", "whole below 16 at 28 px", "whole below 16 at 56 px"),
        "left out within 8 grey levels",
    ]
    told = describe_settings({**stats, "drop_tolerance": None, "predict_tolerance": 20.0})
    assert told.split("     ")[-1] == "left out where predicted within 20"


def test_the_limit_is_the_familys_and_is_named(photo, tmp_path, visualize_command):
    for family, published in families.PUBLISHED.items():
        processor = load_processor(None, family, patch_selection_method="budget", alpha=0.3)
        assert processor.patch_size == published.patch_size
        assert processor.size["longest_edge"] == published.max_pixels
    large = tmp_path / "large.png"
    Image.new("RGB", (1600, 1200), "teal").save(large)
    method = ("--patch-selection-method", "v1")
    result = visualize_command(large, "-o", tmp_path / "a", *method)
    assert "(at most 1.0 megapixels, upstream's class default)" in result.stdout
    assert "released checkpoints allow 12.8 megapixels or more: name yours with --model" in result.stderr
    result = visualize_command(large, "-o", tmp_path / "b", "--family", "qwen3_vl", *method)
    assert "1600×1216 (at most 16.8 megapixels, the limit of released Qwen3-VL checkpoints)" in result.stdout
    assert result.stderr == "" and " of 64 px" in result.stdout
    for options, said in (
        (("--family", "qwen9"), "--family 'qwen9' is no family; expected one of qwen2_vl"),
        (("--family", "qwen3_vl", "--model", str(tmp_path)), "expected --model or --family, and not both"),
    ):
        result = visualize_command(photo, *options)
        assert result.exit_code == 2 and said in result.stderr
