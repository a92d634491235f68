"""Where settings come from in vLLM, and what is said of those that cannot be used."""

import json

import pytest
from transformers import AutoProcessor

from apt_code.patch_layout import PatchLayout
from tests.serving.engines import IMAGE, Request, engine, processed
from transformers_apt.models.layouts import LAYOUT_KEY

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
V1, V2 = {"patch_selection_method": "v1"}, {"patch_selection_method": "v2"}
TEXT = f"What is in {IMAGE}?"


def layout_in(llm, request):
    """The layout of a request's one image, `None` where it has upstream's patches."""
    (prompt,) = processed(llm, [request])
    (item,) = prompt["mm_kwargs"]["image"]
    return item[LAYOUT_KEY].data.tolist() if LAYOUT_KEY in item else None


def expected_layout(checkpoint, picture, settings):
    processor = AutoProcessor.from_pretrained(checkpoint)
    found = processor.image_processor(picture, return_tensors="pt", **settings)
    (layout,) = PatchLayout.unpack(found[LAYOUT_KEY], found["image_grid_thw"], found["image_patch_counts"])
    return layout.patches.tolist()


@pytest.fixture
def checkpoint(tiny):
    return tiny("qwen2_vl")


@pytest.fixture
def picture(pictures):
    return pictures[2]


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_settings_of_the_server_and_of_a_request(checkpoint, picture, nested):
    server = {"images_kwargs": BUDGET} if nested else BUDGET
    with engine(checkpoint, mm_processor_kwargs=server) as llm:
        # alpha means something else to v2, so that the server's, which was for budget, does not reach it
        for settings, means in (({}, BUDGET), ({"alpha": 0.7}, BUDGET | {"alpha": 0.7}), (V1, V1), (V2, V2)):
            expected = expected_layout(checkpoint, picture, means)
            for nested_request in (True, False):
                assert layout_in(llm, Request(TEXT, [picture], settings=settings, nested=nested_request)) == expected
        assert layout_in(llm, Request(TEXT, [picture], settings={"patch_selection_method": "off"})) is None


def test_settings_of_the_environment_and_of_the_checkpoint(checkpoint, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", json.dumps(BUDGET))
    with engine(checkpoint) as llm:
        assert layout_in(llm, Request(TEXT, [picture])) == expected_layout(checkpoint, picture, BUDGET)
        monkeypatch.delenv("TRANSFORMERS_APT_SETTINGS")
        assert layout_in(llm, Request(TEXT, [picture])) is None
        processor = llm.renderer.get_mm_processor().info.get_hf_processor()
        processor.image_processor.patch_selection_method = "joint"
        processor.image_processor.alpha = 0.5
        expected = expected_layout(checkpoint, picture, {"patch_selection_method": "joint", "alpha": 0.5})
        assert layout_in(llm, Request(TEXT, [picture])) == expected
        del processor.image_processor.patch_selection_method, processor.image_processor.alpha


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patch_selection_method": "best"}, "patch_selection_method='best': expected one of"),
        ({"patch_selection_method": "budget", "alpha": 7}, "alpha"),
        ({"patch_selection_method": "v1", "thresholds": [1]}, "thresholds"),
        ({"patch_selection_method": "v1", "importance_method": "luck"}, "importance_method='luck'"),
    ],
)
def test_bad_settings_of_a_request_are_named(llm, picture, settings, sentence):
    for nested in (True, False):
        with pytest.raises((TypeError, ValueError), match=sentence):
            processed(llm, [Request(TEXT, [picture], settings=settings, nested=nested)])


def test_a_setting_that_is_passed_twice_is_refused(llm, picture):
    request = Request(TEXT, [picture]).for_vllm() | {"mm_processor_kwargs": {**BUDGET, "images_kwargs": BUDGET}}
    with pytest.raises(ValueError, match="passed twice"):
        llm.renderer.render_cmpl([request])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images_kwargs": [BUDGET, BUDGET]}, "expected one object, which is for all images"),
        ({"images_kwargs": "v1"}, "images_kwargs='v1': expected one object"),
        ({"videos_kwargs": BUDGET}, "was passed in videos_kwargs; pass it in images_kwargs"),
    ],
)
def test_settings_in_a_place_where_nobody_reads_them_are_refused(llm, picture, arguments, sentence):
    request = Request(TEXT, [picture]).for_vllm() | {"mm_processor_kwargs": arguments}
    with pytest.raises((TypeError, ValueError), match=sentence):
        llm.renderer.render_cmpl([request])


def test_bad_settings_of_the_server_stop_its_start(checkpoint):
    for server in ({"images_kwargs": {"patch_selection_method": "best"}}, {"patch_selection_method": "best"}):
        with pytest.raises(ValueError, match="patch_selection_method='best'"):  # noqa: SIM117
            with engine(checkpoint, mm_processor_kwargs=server):
                pass


def test_the_profile_is_of_full_resolution(checkpoint):
    """Also where the server's setting would make next to nothing of a blank picture."""
    with engine(checkpoint, mm_processor_kwargs={"images_kwargs": BUDGET}) as llm:
        processor = llm.renderer.get_mm_processor()
        found = processor.get_dummy_mm_inputs({"image": 1})
        (item,) = found["mm_kwargs"]["image"]
        assert LAYOUT_KEY not in item
        (place,) = found["mm_placeholders"]["image"]
        assert place.length == processor.info.get_max_image_tokens()


@pytest.fixture(scope="module")
def llm(tiny):
    with engine(tiny("qwen2_vl")) as llm:
        yield llm
