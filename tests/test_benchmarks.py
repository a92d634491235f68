"""The benchmarks take any family: their random models have the shapes they are named after, and checkpoints run."""

import json

import pytest
import typer

import transformers_apt
from benchmarks import generate, retention, vision_tower
from benchmarks.random_models import SMALL, config_of, shortened, sizes_of
from transformers_apt.embedded.tiny_checkpoint import save_checkpoint
from transformers_apt.models.flops import PUBLISHED, shape_of


@pytest.fixture(scope="module", autouse=True)
def patched():
    transformers_apt.apply()


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def checkpoint(request, tmp_path_factory):
    return request.param, str(save_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param))


@pytest.mark.parametrize("family", PUBLISHED)
def test_random_models_have_the_published_shapes(family):
    for size, shape in sizes_of(family).items():
        if size != SMALL:  # which has the tokenizer's vocabulary
            assert shape_of(config_of(family, shape)) == shape
            assert shape_of(config_of(family, shortened(shape, 4))).tower.depth == 4


def test_the_small_size_runs_in_every_family_that_has_windows_or_deepstack():
    for family in ("qwen2_5_vl", "qwen3_vl"):
        tower, processor, shape = vision_tower.make_tower(family, SMALL, None, "cpu", "float32")
        assert (len(tower.blocks), processor.patch_size) == (2, 14 if family == "qwen2_5_vl" else 16)
        assert sum(weight.numel() for weight in tower.parameters()) > 1e7 and shape.tower.depth == 2


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match="--family qwen1: expected one of"):
        sizes_of("qwen1")
    with pytest.raises(typer.BadParameter, match="--size 9b: expected one of"):
        generate.main(size=["9b"])
    with pytest.raises(typer.BadParameter, match="--depth with --model"):
        vision_tower.main(model="somewhere", depth=2)


def _rows(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_the_tower_of_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    family, folder = checkpoint
    monkeypatch.setattr(vision_tower, "SIZES", {"small": (320, 256)})
    vision_tower.main(model=folder, alphas=[0.3], repeats=1, output=tmp_path)
    found = _rows(tmp_path, "vision_tower")
    assert found["family"] == family
    upstream, budget = found["rows"]
    assert upstream["ceiling (FLOPs)"] == 1 < budget["ceiling (FLOPs)"]
    assert budget["patches"] <= round(0.3 * upstream["patches"])


def test_the_first_token_of_a_checkpoint(checkpoint, tmp_path, monkeypatch):
    family, folder = checkpoint
    monkeypatch.setattr(generate, "IMAGES", {"1080p": (320, 256)})
    generate.main(model=folder, alphas=[0.3], repeats=1, output=tmp_path)
    rows = _rows(tmp_path, "generate")["rows"]
    assert [row["family"] for row in rows] == [family] * 2 and rows[1]["patches"] < rows[0]["patches"]


def test_retention_of_a_checkpoints_image_processor(checkpoint, tmp_path, monkeypatch):
    _, folder = checkpoint
    all_photos = retention.photos()
    monkeypatch.setattr(retention, "photos", lambda: {"coffee": all_photos["coffee"]})
    retention.main(model=folder, output=tmp_path)
    rows = {row["method"]: row for row in _rows(tmp_path, "retention")["rows"]}
    assert 25 < rows["budget 0.3"]["patches %"] <= 30.1
