"""The benchmarks take any family: their random models have the shapes they are named after, and checkpoints run."""

import json
import subprocess
import warnings
from pathlib import Path

import pytest
import typer
from transformers import Qwen2VLImageProcessor

import transformers_apt
from apt_code.selection.fit import EXPONENT, STEPS
from benchmarks import fit, generate, gpu_preprocessing, gpu_tables, retention, vision_tower
from benchmarks.measuring import document, named_settings
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
    with pytest.raises(typer.BadParameter, match="--sizes 2 MP: expected one of"):
        vision_tower.main(sizes=["2 MP"])
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


def test_settings_as_json_beside_a_downscale_to_as_many_tokens(checkpoint, tmp_path, monkeypatch, capsys):
    family, folder = checkpoint
    monkeypatch.setattr(generate, "IMAGES", {"1080p": (640, 480)})
    budget = '{"patch_selection_method": "budget", "alpha": 0.2, "importance_method": "upsample_mse"}'
    like = "budget 0.2 upsample_mse"
    generate.main(
        model=folder, setting=[budget], downscaled_like=[like], kind=["document"], repeats=1, output=tmp_path
    )
    rows = _rows(tmp_path, "generate")["rows"]
    assert [row["method"] for row in rows] == ["upstream", like, f"downscaled like {like}"]
    upstream, ours, rival = rows
    assert ours["image tokens"] < 0.6 * upstream["image tokens"]
    assert rival["image tokens"] == pytest.approx(ours["image tokens"], rel=0.1)
    for row in rows:
        assert row["reached"] == pytest.approx(row["tower speed-up"] / row["ceiling (FLOPs)"])
        assert row["preprocess there"] is None is row["speed-up there"]  # no GPU took part
    capsys.readouterr()
    gpu_tables.main(tmp_path)
    printed = capsys.readouterr().out
    assert "**generate**" in printed and f"| {family} {folder} | 1080p | document | {like} |" in printed


def test_settings_that_there_are_not():
    for text, said in (("{", "not JSON"), ("[1]", "expected an object"), ('{"alpa": 1}', "not {'alpa'}")):
        with pytest.raises(ValueError, match=said):
            named_settings([text])
    with pytest.raises(typer.BadParameter, match="--downscaled-like"):
        generate.main(downscaled_like=["v1"])


def test_preprocessing_where_there_is_no_gpu_to_wait_for(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_preprocessing, "SIZES", {"512": (112, 84)})
    setting = '{"patch_selection_method": "budget", "alpha": 0.3}'
    gpu_preprocessing.main(sizes=["512"], setting=[setting], device="cpu", repeats=1, output=tmp_path)
    rows = _rows(tmp_path, "gpu_preprocessing")["rows"]
    assert [row["method"] for row in rows] == ["upstream", "budget 0.3"] * 2
    assert {row["waits"] for row in rows} == {0} and rows[1]["patches"] < rows[0]["patches"]


def test_waits_are_counted_by_line():
    def work():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    ((place, count),) = gpu_preprocessing.waits(work).items()
    assert count == 3 and place.rpartition(":")[0].endswith("tests/test_benchmarks.py")


def test_a_document_has_type_and_paper():
    grey = document(1920, 1080).convert("L")
    paper, ink = grey.histogram()[255], sum(grey.histogram()[:60])
    assert paper > 0.5 * 1920 * 1080 and ink > 0.03 * 1920 * 1080


def test_the_gpu_script_is_a_script():
    """A GPU is seldom at hand; `DEVICE=cpu QUICK=1 benchmarks/gpu.sh FOLDER` tries the steps themselves."""
    subprocess.run(["bash", "-n", Path(gpu_tables.__file__).with_name("gpu.sh")], check=True)


def test_fits_search_is_that_of_the_product():
    """The benchmark walks a ladder that was made beforehand; the image processor ends at the same picture."""
    picture = document(700, 504)
    found = fit.ladder(picture, picture.width * picture.height)
    limit = round(0.3 * found[0][1])
    tried, area, ratio = fit.search(found, limit, EXPONENT, fit.FINEST // STEPS)
    assert tried >= 1 and 0 < area < tried and 0 < ratio <= 1
    image_processor = Qwen2VLImageProcessor(patch_selection_method="fit", alpha=0.3)
    image_processor(images=picture)
    (info,) = image_processor.last_budget_info
    assert (info["limit"], info["cells"]) == (limit, found[0][1])
    reached = info["max_pixels"] / (28 * 28 * found[0][1])
    best = next(rung for rung, (tokens, _) in enumerate(found) if tokens <= limit)
    assert reached / 2 ** (-best / fit.FINEST) == pytest.approx(ratio, rel=0.05)
    assert fit.search(found, found[0][0], EXPONENT, 1) is None


def test_retention_of_a_checkpoints_image_processor(checkpoint, tmp_path, monkeypatch):
    _, folder = checkpoint
    all_photos = retention.photos()
    monkeypatch.setattr(retention, "photos", lambda: {"coffee": all_photos["coffee"]})
    retention.main(model=folder, output=tmp_path)
    rows = {row["method"]: row for row in _rows(tmp_path, "retention")["rows"]}
    assert 25 < rows["budget 0.3"]["patches %"] <= 30.1
