"""One image with different settings: vLLM's caches never answer one with what another one made."""

import pytest

from tests.serving.engines import IMAGE, OFF, Reference, Request, ask, assert_equal, engine, processed

BUDGETS = [{"patch_selection_method": "budget", "alpha": alpha} for alpha in (0.3, 0.5, 0.9)]
SETTINGS = [*BUDGETS, OFF, {}]
TEXT = f"What is in {IMAGE}?"


@pytest.fixture(scope="module")
def reference(tiny):
    return Reference(tiny("qwen2_vl"))


@pytest.fixture(scope="module")
def llm(tiny):
    with engine(tiny("qwen2_vl")) as llm:
        yield llm


def hash_of(llm, request):
    (prompt,) = processed(llm, [request])
    (found,) = prompt["mm_hashes"]["image"]
    return found


def test_a_setting_never_gets_what_another_one_made(llm, reference, pictures):
    """Forwards and backwards, so that each comes after each other one; then once more, from the caches."""
    requests = [Request(TEXT, pictures[:1], settings=settings) for settings in SETTINGS]
    expected = [reference.ask(request) for request in requests]
    assert len({len(answer.prompt) for answer in expected[: len(BUDGETS)]}) == len(BUDGETS)
    for order in (range(len(requests)), reversed(range(len(requests)))):
        for i in order:
            (found,) = ask(llm, requests[i : i + 1])
            assert_equal(found, expected[i])


def test_hashes_tell_settings_apart_and_nothing_else(llm, pictures):
    def of(settings, nested=True):
        return hash_of(llm, Request(TEXT, pictures[:1], settings=settings, nested=nested))

    found = [of(settings) for settings in SETTINGS]
    assert len(set(found)) == len(SETTINGS)
    assert of(BUDGETS[0], nested=False) == found[0], "in images_kwargs or beside it is the same"
    v1 = {"patch_selection_method": "v1", "thresholds": [3, 2]}
    assert of(v1) == of({**v1, "thresholds": (3, 2)}) != of({**v1, "thresholds": [3, 3]})
    assert of(v1) == of({**v1, "alpha": 0.5}), "v1 does not read alpha"


def test_attributes_and_the_environment_are_told_apart_too(llm, pictures, monkeypatch):
    """Neither is in a request, and a program may change both while it runs."""
    request = Request(TEXT, pictures[:1])
    processor = llm.renderer.get_mm_processor().info.get_hf_processor()
    found = [hash_of(llm, request)]
    monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", '{"patch_selection_method": "budget", "alpha": 0.3}')
    found.append(hash_of(llm, request))
    assert found[1] == hash_of(llm, Request(TEXT, pictures[:1], settings=BUDGETS[0]))
    monkeypatch.setattr(processor.image_processor, "alpha", 0.6, raising=False)
    found.append(hash_of(llm, request))
    assert len(set(found)) == 3


def test_the_same_image_again_is_not_processed_again(llm, pictures, monkeypatch):
    from transformers_apt.models import preprocessing

    request = Request(TEXT, pictures[1:2], settings=BUDGETS[1])
    first = ask(llm, [request])
    monkeypatch.setattr(preprocessing, "PatchSelector", None)  # whoever chooses patches now fails
    (again,) = ask(llm, [request])
    assert_equal(again, first[0], tolerance=1e-5)
