"""The quality benchmark's evaluation: fair matches, right intervals, and the public path from picture to table."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("font_roboto", reason="pip install 'transformers-apt[bench]'")

import transformers_apt
from benchmarks.quality import candidates, compare, evaluate, items, questions, report, settings
from transformers_apt.embedded.tiny_checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"), "test", seed=1, words=questions.WORDS)


def _options(model, out, **changes):
    options = {
        "model": str(model),
        "out": out,
        "questions": None,
        "images": None,
        "count": 6,
        "seed": 1,
        "settings": ["off", "budget*0.3", "joint*0.3", "downscale, * of 0.3", "downscale*joint 0.3"],
        "batch": 4,
        "new_tokens": 2,
        "device": "cpu",
        "dtype": "float32",
        "processes": 1,
        "minutes": float("inf"),
        "adapter": None,
    }
    return argparse.Namespace(**(options | changes))


@pytest.fixture
def patched():
    with transformers_apt.applied():
        yield


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (50, 50, 0.9287, 1.0)]
)
def test_wilson_interval(right, count, low, high):
    assert report.wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_wilson_refuses_what_is_no_share():
    with pytest.raises(ValueError, match="expected 0 <= right"):
        report.wilson(3, 2)


@pytest.mark.parametrize("size", [(224, 448), (301, 260), (448, 300)])
@pytest.mark.parametrize("cells", [1, 7, 20, 61])
def test_downscaling_never_gets_less_than_what_it_is_compared_with(size, cells):
    small = settings.downscaled(Image.new("RGB", size), cells)
    assert small.width % 28 == small.height % 28 == 0
    found = small.width * small.height // 784
    assert cells <= found <= cells * 1.4 + 3
    assert small.width <= size[0] + 14 and small.height <= size[1] + 14


@pytest.mark.parametrize("size", [(224, 448), (301, 260), (448, 300)])
def test_scaling_is_what_upstream_does_at_that_many_pixels(size):
    from transformers import Qwen2VLImageProcessor

    image = Image.new("RGB", size)
    full = settings.scaled(image, 1.0)
    small = settings.scaled(image, 0.45)
    most = int(0.45 * full.width * full.height)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": most})
    _, height, width = processor(image, patch_selection_method="off")["image_grid_thw"][0].tolist()
    assert (small.width, small.height) == (14 * width, 14 * height) and small.width * small.height <= most


def test_drawn_items_repeat_and_cover_every_type():
    first, again, other = (items.generated(24, seed) for seed in (1, 1, 2))
    assert items.fingerprint(first) == items.fingerprint(again) != items.fingerprint(other)
    groups = [group for item in first for group in item.groups]
    assert groups.count("read") == 12
    assert {"colour", "count", "where"} <= set(groups)
    for item in first:
        assert min(item.load().size) >= 224 and max(item.load().size) <= 448


def test_score_counts_by_group_and_forgives_case_and_full_stop():
    picture = Image.new("RGB", (28, 28))
    asked = [items.Item(lambda: picture, "?", ("Red", "crimson"), (group,)) for group in "aab"]
    found = evaluate.score(asked, ["red.", "blue", " Crimson "], [4, 8, 12], [1, 2, 3])
    assert {name: (group["right"], group["n"]) for name, group in found.items()} == {
        "all": (2, 3),
        "a": (1, 2),
        "b": (1, 1),
    }
    assert (found["a"]["patches"], found["all"]["tokens"]) == (6, 2)


def test_evaluation_matches_sizes_and_continues(model, tmp_path, patched):
    results = evaluate.evaluate(_options(model, tmp_path))
    rows = {row["name"]: row for row in results["settings"]}
    budgets = [rows[f"budget {name} 0.3"]["patches"] for name in (*settings.IMPORTANCE, *candidates.CANDIDATES)]
    assert len(set(budgets)) == 1 and budgets[0] < 0.31 * rows["off"]["patches"]
    kept = json.loads((tmp_path / "answers.json").read_text())
    for like, equal, name in (
        ("budget", "patches", "patches of 0.3"),
        ("budget", "tokens", "tokens of 0.3"),
        ("joint", "tokens", "tokens of joint 0.3"),
    ):
        ours, theirs = kept[f"{like} upsample_mse 0.3"][equal], kept[f"downscale, {name}"][equal]
        assert all(a <= b for a, b in zip(ours, theirs, strict=True))
    assert kept["joint upsample_mse 0.3"]["patches"] == kept["budget upsample_mse 0.3"]["patches"]
    assert "| off |" in (tmp_path / "results.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"accuracy_per_{key}.png" for key in ("patches", "tokens", "compute_2b", "compute_7b")
    }
    assert rows["off"]["compute"] == {"2b": 1.0, "7b": 1.0}
    halved = rows["downscale, patches of 0.3"]["compute"]
    assert all(rows["budget upsample_mse 0.3"]["compute"][size] > halved[size] for size in halved), "more tokens"
    assert 0.2 < halved["2b"] < 0.5
    matched = {(pair["setting"], pair["against"]) for pair in results["paired"] if "more" not in pair["equal"]}
    assert matched == {
        *((row, "downscale, patches of 0.3") for row in rows if row.endswith("0.3") and "downscale" not in row),
        ("budget upsample_mse 0.3", "downscale, tokens of 0.3"),
        ("joint upsample_mse 0.3", "downscale, tokens of joint 0.3"),
    }
    for pair in results["paired"]:
        if "more" in pair["equal"]:  # a threshold: no downscale was matched to it
            cost = evaluate.COSTS[pair["equal"].removesuffix(", or more")]
            others = [cost(row) for name, row in rows.items() if name.startswith("downscale")]
            least = min(other for other in others if other >= cost(rows[pair["setting"]]))
            assert pair["setting"].startswith("v1") and cost(rows[pair["against"]]) == least

    before = (tmp_path / "results.json").read_text()
    evaluate.evaluate(_options(model, tmp_path))
    assert (tmp_path / "results.json").read_text() == before
    with pytest.raises(ValueError, match="another model or other questions"):
        evaluate.evaluate(_options(model, tmp_path, seed=2))


def test_several_processes_answer_alike_and_leave_cells_out(model, tmp_path, patched):
    wanted = ["off", "v1 upsample_mse 4 RMS, drop 2*", "downscale, tokens of v1 upsample_mse 4 RMS, drop 2*", "*fit*"]
    found = [
        evaluate.evaluate(_options(model, tmp_path / str(count), settings=wanted, processes=count)) for count in (1, 2)
    ]
    rows = {row["name"]: row for row in found[0]["settings"]}
    again = {row["name"]: row for row in found[1]["settings"]}
    assert rows.keys() == again.keys() and all(rows[name]["groups"] == again[name]["groups"] for name in rows)
    names = ["off", *(f"v1 upsample_mse 4 RMS, drop 2{rest}" for rest in ("", ", area 0.66", ", area 0.45"))]
    tokens = [rows[name]["tokens"] for name in names]
    assert tokens == sorted(tokens, reverse=True) and len(set(tokens)) == 4
    kept = json.loads((tmp_path / "1" / "answers.json").read_text())
    for name in (*names[1:], "fit 0.45"):
        ours, theirs = kept[name]["tokens"], kept[f"downscale, tokens of {name}"]["tokens"]
        assert all(a <= b for a, b in zip(ours, theirs, strict=True))
    most = [round(settings.FITS[0] * tokens) for tokens in kept["off"]["tokens"]]
    assert all(a <= b for a, b in zip(kept["fit 0.45"]["tokens"], most, strict=True))


def test_evaluation_ends_by_the_clock_and_two_are_compared(model, tmp_path, patched):
    for name in ("before", "after"):
        results = evaluate.evaluate(_options(model, tmp_path / name, minutes=0.0))
        assert [row["name"] for row in results["settings"]] == ["off"]
    text = compare.compare(tmp_path / "before", tmp_path / "after")
    assert "| off | +0.0 (+0.0 to +0.0) |" in text
    evaluate.evaluate(_options(model, tmp_path / "other", minutes=0.0, seed=2))
    with pytest.raises(ValueError, match="the same --count and --seed"):
        compare.compare(tmp_path / "before", tmp_path / "other")


def test_own_questions(model, tmp_path, patched):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    file = tmp_path / "questions.jsonl"
    file.write_text(
        json.dumps({"image": "a.png", "question": "What is it?", "answers": ["noise"], "group": "x"}) + "\n"
    )
    results = evaluate.evaluate(_options(model, tmp_path / "out", questions=file, settings=["off", "v1 entropy*"]))
    assert [row["groups"]["x"]["n"] for row in results["settings"]] == [1, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected an object"),
        ('{"image": "a.png", "question": "?"}', "expected an object"),
        ('{"image": "a.png", "question": "?", "answers": "x"}', "expected a list of strings"),
        ('{"image": "none.png", "question": "?", "answers": ["x"]}', "does not exist"),
        ("", "holds no questions"),
    ],
)
def test_bad_questions_are_refused_with_their_line(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        items.from_file(file, None)


def test_random_splits_repeat_and_exist_only_inside():
    import torch

    from apt_code import PatchTokenizer

    images = torch.randint(0, 256, (2, 3, 112, 168), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with candidates.extra_importance():
        tokenizer = PatchTokenizer(
            base_patch_size=14, patch_selection_method="budget", alpha=0.5, importance_method="random"
        )
        first, alone = tokenizer.select_layouts(images), tokenizer.select_layouts(images[1:])
    assert torch.equal(first[1].patches, alone[0].patches)
    assert not torch.equal(first[0].patches, first[1].patches)
    with pytest.raises(ValueError, match="importance_method"):
        PatchTokenizer(importance_method="random")


def test_paired_difference():
    ours, theirs = [True] * 60 + [False] * 40, [True] * 50 + [False] * 50
    found = report.paired(ours, theirs)
    assert found["difference"] == pytest.approx(0.1)
    # ten won, none lost: variance (10 - 10²/100) / 100²
    assert found["high"] - found["difference"] == pytest.approx(1.959964 * 9**0.5 / 100)
    assert found["difference"] - found["low"] == pytest.approx(found["high"] - found["difference"])
    assert report.paired(ours, ours) == {"difference": 0.0, "low": 0.0, "high": 0.0}
