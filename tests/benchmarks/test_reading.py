"""The benchmark of readers: PixelPrune's rule by hand, what is left, pictures, figures, a whole run."""

import json

import numpy as np
import pytest
import torch
from PIL import ImageChops

from apt_code.dropping import drop_repeats, inherited_pixels
from apt_code.importance.upsample_mse import compute_patch_upsample_mse_batched
from apt_code.patch_layout import PatchLayout
from tests.apt_code.references import canonical

pytest.importorskip("font_roboto", reason="pip install 'transformers-apt[bench]'")

from benchmarks.reading import __main__ as command
from benchmarks.reading import readers, scores
from benchmarks.reading.candidates import LADDER, OFF, PIXELPRUNE, RULES, Rule, downscaled, fit, lossless, restored
from benchmarks.reading.pictures import KINDS, picture, smaller
from benchmarks.reading.pixelprune import prune_pixels
from transformers_apt.models.settings import FIT, METHOD

NEEDS_RAPIDFUZZ = "needs rapidfuzz: pip install 'transformers-apt[bench]'"


def layout_of(patches, grid):
    return PatchLayout(grid, torch.tensor(canonical(patches), dtype=torch.int64))


# -------------------------------------------------------------------- what is left out


def cells(*rows):
    """Cells of 4 × 4 px by letters, one picture each: `a` and `b` are textures, `c` is `a` but for one pixel."""
    textures = {name: np.random.default_rng(i).integers(0, 200, (1, 4, 4)) for i, name in enumerate("ab")}
    textures["c"] = textures["a"].copy()
    textures["c"][0, 1, 2] += 5
    return np.block([[[textures[name] for name in row] for row in rows]]).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "tau", "kept"),
    [
        (("aaaa",), 0, 1),
        (("abab",), 0, 4),
        (("a", "a", "b"), 0, 2),  # nothing on the left: the upper one predicts
        (("aaa", "aaa"), 0, 1),
        (("ab", "ab"), 0, 2),  # upper left like left, not like upper: the upper one predicts
        (("ab", "aa"), 0, 3),  # so this one is predicted to be b, and is not
        (("aa", "bb"), 0, 2),  # upper left like upper: the left one
        (("aa", "ba"), 0, 3),
        (("ac",), 4, 2),
        (("ac",), 5, 1),
    ],
)
def test_the_rule_of_pixelprune_by_hand(rows, tau, kept):
    image = cells(*rows)
    found, seen = prune_pixels(image, tau, 2)
    assert found == kept
    assert abs(seen.astype(int) - image).max() <= tau
    pixels, layout = torch.from_numpy(image), PatchLayout.uniform((2 * len(rows), 2 * len(rows[0])))
    (predicted,) = drop_repeats(pixels[None], [layout], 2, None, tau)
    assert predicted.num_language_tokens == kept, "without a tiling the package's rule is this one"
    assert np.array_equal(inherited_pixels(pixels, layout, 2, None, tau), seen)


def test_nothing_drifts():
    ramp = np.arange(0, 80, 2, dtype=np.uint8).repeat(4)[None, None].repeat(4, 1)
    kept, seen = prune_pixels(ramp, 4, 2)
    assert abs(seen.astype(int) - ramp).max() == 4 and kept == 14, "every third cell is too far from the last one kept"


def test_coarse_patches_are_restored_as_their_map_says():
    image = torch.from_numpy(np.asarray(picture("photo", 0).image)[:112, :168].transpose(2, 0, 1).copy())
    errors = compute_patch_upsample_mse_batched(image[None], 14, 3)
    for size in (2, 4):
        whole = [(row, col, size) for row in range(0, 8, size) for col in range(0, 12, size)]
        seen = restored(image, layout_of(whole, (8, 12)))
        found = (torch.from_numpy(seen).double() - image).square().mean(0)
        side = 14 * size
        means = found.unfold(0, side, side).unfold(1, side, side).mean((2, 3))
        torch.testing.assert_close(means.float(), errors[side][0], rtol=0.02, atol=0.4)
    everything = PatchLayout.uniform((8, 12))
    assert np.array_equal(restored(image, everything), image.numpy())
    partial = PatchLayout((8, 12), everything.patches[: -4 * 2])
    seen, inherited = restored(image, partial, 255 - image), (255 - image).numpy()
    left_out = (slice(None), slice(-28, None), slice(-56, None))
    assert np.array_equal(seen[left_out], inherited[left_out])
    assert np.array_equal(seen[:, :-28], image.numpy()[:, :-28])


def test_what_the_rules_leave_and_cost():
    image = picture("slide", 0).image
    full = OFF.see(image)
    assert full.image is image and full.patches == 4 * full.tokens == 1120 * 700 // 14**2
    half = LADDER[3].see(image)
    assert half.patches == 4 * half.tokens and abs(half.tokens / full.tokens - 0.5) < 0.03
    same = PIXELPRUNE[0].see(image)
    assert ImageChops.difference(same.image, image).getbbox() is None and same.tokens < full.tokens
    flat, more = lossless(50, 2).see(image), lossless(50, 2, 20).see(image)
    assert (
        more.tokens
        <= flat.tokens
        < Rule("", {"thresholds": [50, 50], "importance_method": "upsample_l4"}).see(image).tokens
    )
    within = fit(0.3).see(image)
    assert within.tokens <= 0.3 * full.tokens and within.image.width < image.width
    first = lossless(50, 2, area=0.5).see(image)
    assert first.image.size == downscaled(image, 0.5).size and first.tokens < flat.tokens


# -------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_same_every_time_and_know_their_lines(kind):
    found, again = picture(kind, 1), picture(kind, 1)
    assert ImageChops.difference(found.image, again.image).getbbox() is None and found.lines == again.lines
    assert ImageChops.difference(found.image.resize((700, 700)), picture(kind, 2).image.resize((700, 700))).getbbox()
    assert len(found.lines) >= 5 and sum(picture(kind, i).held_out for i in range(8)) == 4
    pixels = np.asarray(found.image.convert("L")).astype(int)
    for line in found.lines:
        left, top, right, bottom = (round(edge) for edge in line.box)
        assert 0 <= left < right <= found.image.width and 0 <= top < bottom <= found.image.height
        assert line.text.isascii() and np.ptp(pixels[top:bottom, left:right]) > 40, line
    small = smaller(found)
    assert all(side % 28 == 0 for side in (*found.image.size, *small.image.size))
    whole = readers.cut_out(found.image, found.lines[0].box, (1, 1))
    half = readers.cut_out(found.image.reduce(2), found.lines[0].box, (0.5, 0.5))
    assert whole.size == half.size and whole.height == readers.HEIGHT
    assert abs(np.asarray(whole).astype(int) - np.asarray(half)).mean() < 25
    assert [line.text for line in small.lines] == [line.text for line in found.lines]


# -------------------------------------------------------------------- figures


def test_a_character_is_right_or_wrong():
    pytest.importorskip("rapidfuzz", reason=NEEDS_RAPIDFUZZ)
    assert readers.right("Fresh bread", "Freshbread ") == 1
    assert readers.right("a: (b)", "a\uff1a\uff08b\uff09") == 1, "the same characters, as wide as Chinese ones"
    assert readers.right("1234", "1235") == 0.75
    assert readers.right("1234", "") == readers.right("12", "9876543") == 0


def record(rule, index, tokens, right, kind="slide", size="small", held_out=True):
    return {
        **{"kind": kind, "index": index, "held_out": held_out, "size": size, "rule": rule},
        **{"patches": 4 * tokens, "tokens": tokens, "right": {"one": right, "two": right}},
    }


def test_a_downscale_of_equal_cost_lies_between_two_rungs():
    rungs = [record("a", 0, 100, 1.0), record("b", 0, 50, 0.8), record("c", 0, 20, 0.2)]
    for tokens, wanted in ((100, 1.0), (75, 0.9), (35, 0.5), (10, 0.2)):
        assert scores.downscale_at(rungs, scores.COSTS["tokens"], tokens) == pytest.approx(wanted)
        assert scores.downscale_at(rungs, scores.COSTS["patches"], 4 * tokens) == pytest.approx(wanted)
    price = scores.compute_of(record("", 0, 75, 0))
    assert 0.85 < scores.downscale_at(rungs, scores.compute_of, price) < 0.95


def test_rows_and_choices_of_a_hand_made_run():
    kept = {"lossless": (60, 1.0), "too coarse": (50, 0.9), "small": (40, 0.95), "smaller": (30, 0.7)}
    others = {"predicted": (55, 1.0), "fit": (20, 1.0)}
    records = []
    for index in (2, 3, 6):
        records.append(record(OFF.name, index, 100, 1.0))
        records += [record(rung.name, index, round(100 * rung.area), rung.area) for rung in LADDER]
        records += [record(name, index, *figures) for name, figures in (kept | others).items()]
    records.append(record("lossless", 0, 1, 0.0, held_out=False))
    found = scores.Pictures.of(records, "small", held_out=True)
    row = found.row("lossless")
    assert (row["tokens_percent"], row["change"], row["right"]) == (60, 0, {"one": 100, "two": 100})
    assert row["ahead_at_equal_tokens"] == pytest.approx(40) and row["ahead_at_equal_tokens_interval"] == [40, 40]
    assert found.row("small")["change"] == pytest.approx(-5)
    low, high = scores.interval([0, 0, 10, 10])
    assert 0 <= low < 5 < high <= 10
    rules = {name: Rule(name, {}, drop=2, area=0.5 if name.startswith("small") else 1.0) for name in kept}
    rules |= {"predicted": Rule("predicted", {}, drop=2, predictable=4), "fit": Rule("fit", {METHOD: FIT}, drop=2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "by_name", lambda: rules)
        chosen = scores.choose(found)
    assert {aim: rule.name for aim, rule in chosen.items()} == {
        "lose nothing": "lossless",
        "lose nothing, predictable cells left out too": "predicted",
        "45 % of the tokens": "small",
    }


# -------------------------------------------------------------------- all of it


def test_the_command_once_with_a_reader_that_cannot_read(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rapidfuzz", reason=NEEDS_RAPIDFUZZ)
    few = (RULES[0], lossless(50, 2), lossless(50, 2, area=0.66), PIXELPRUNE[1])
    calls = []

    def blind(lines):
        calls.append(len(lines))
        return ["nothing"] * len(lines)

    monkeypatch.setattr(readers, "READERS", {"blind": blind, "Tesseract": blind})
    monkeypatch.setattr(readers, "is_there", lambda reader: reader == "blind")
    monkeypatch.setattr(readers, "release", lambda reader: "blind 1.0")
    monkeypatch.setattr(command, "RULES", few)
    monkeypatch.setattr(command, "GRID", ())
    monkeypatch.setattr(scores, "BUDGET", 100.0)
    run = {"output": tmp_path, "pictures": 4, "kinds": ["slide"], "workers": 1}
    command.main(**run)
    found = json.loads((tmp_path / "reading.json").read_text())
    assert found["chosen"] == {"lose nothing": few[1].name, "45 % of the tokens": few[2].name}
    assert [row["rule"] for row in found["held_out"]["small"]["rows"]] == [rule.name for rule in few]
    assert {(one["index"], one["held_out"]) for one in found["records"]} == {(0, 0), (1, 0), (2, 1), (3, 1)}
    text = (tmp_path / "reading.md").read_text()
    assert "### Held-out half, small size" in text and few[3].name in text
    out = " ".join(capsys.readouterr().out.split())
    assert "Tesseract is left out" in out and "apt-get install tesseract-ocr" in out
    before = len(calls)
    command.main(**run)
    assert before and len(calls) == before, "what was read is remembered"


@pytest.mark.parametrize("reader", sorted(readers.READERS))
def test_a_pretrained_reader_reads_what_is_left(reader, tmp_path):
    if not readers.is_there(reader):
        pytest.skip(readers.INSTALL[reader])
    pytest.importorskip("rapidfuzz", reason=NEEDS_RAPIDFUZZ)
    rules = (OFF.name, lossless(50, 2).name, LADDER[-1].name)
    found = command.measure(("slide", 1, "small", rules, (reader,), str(tmp_path / "read.sqlite")))
    full, left, tiny = (one["right"][reader] for one in found)
    assert full > 0.9 and left > 0.9 and tiny < full


def test_bad_arguments_are_named():
    for wrong in ({"pictures": 6}, {"kinds": ["poem"]}):
        with pytest.raises(command.typer.BadParameter, match="a multiple of 4, and of"):
            command.main(**wrong)
