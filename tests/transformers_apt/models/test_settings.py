"""The selection settings of the image processors: where they can be given, which one wins, what is refused."""

import copy
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoImageProcessor, AutoProcessor, Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from transformers_apt.models.settings import resolve

BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
DEFAULTS = {
    "patch_selection_method": "v1",
    "alpha": 1.0,
    "importance_method": "entropy",
    "thresholds": None,
    "drop_tolerance": None,
    "predict_tolerance": None,
}
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def layout_of(output):
    return torch.as_tensor(output["image_patch_layout"])


@pytest.fixture(scope="module")
def expected(half_plain):
    """`expected(backend, …)`: the layout that a call with these settings, all of them named, gives."""

    def layout(backend, **settings):
        return layout_of(backend()(images=half_plain, **{**DEFAULTS, **settings}, return_tensors="pt"))

    return layout


@both_backends
def test_the_settings_make_a_difference(backend, expected):
    """Without this, the comparisons below would prove nothing."""
    layouts = [
        expected(backend),
        expected(backend, thresholds=[1.0, 1.0]),
        expected(backend, importance_method="laplacian"),
        expected(backend, patch_selection_method="v2", alpha=0.5),
        expected(backend, patch_selection_method="budget", alpha=0.5),
        expected(backend, patch_selection_method="budget", alpha=0.3),
        expected(backend, patch_selection_method="budget", alpha=0.3, importance_method="upsample_mse"),
        expected(backend, patch_selection_method="budget", alpha=0.3, drop_tolerance=30),
        expected(backend, patch_selection_method="budget", alpha=0.3, predict_tolerance=100),
        expected(backend, drop_tolerance=2),
    ]
    assert len({layout.numpy().tobytes() for layout in layouts}) == len(layouts)


@both_backends
def test_defaults_are_the_documented_ones(backend, half_plain, expected):
    assert {name: getattr(backend(), name) for name in DEFAULTS} == DEFAULTS
    assert torch.equal(layout_of(backend()(images=half_plain)), expected(backend))


@both_backends
def test_call_before_attribute_before_default(backend, half_plain, expected):
    budget = {"patch_selection_method": "budget", "alpha": 0.5}
    by_constructor = backend(**budget)
    assert torch.equal(layout_of(by_constructor(images=half_plain)), expected(backend, **budget))
    by_attribute = backend()
    by_attribute.patch_selection_method, by_attribute.alpha = "budget", 0.5
    assert torch.equal(layout_of(by_attribute(images=half_plain)), expected(backend, **budget))
    for settings in ({"alpha": 0.3}, {"importance_method": "upsample_mse"}, {"patch_selection_method": "v1"}):
        found = layout_of(by_attribute(images=half_plain, **settings))
        assert torch.equal(found, expected(backend, **{**budget, **settings}))
    assert "image_patch_layout" not in by_attribute(images=half_plain, patch_selection_method="off")
    assert (by_attribute.patch_selection_method, by_attribute.alpha) == ("budget", 0.5), "a call changed the default"
    assert torch.equal(layout_of(by_attribute(images=half_plain, alpha=None)), expected(backend, **budget))


@both_backends
def test_alpha_zero_is_a_value(backend, half_plain, expected):
    with pytest.warns(UserWarning, match="smallest alpha that can be met"):
        found = layout_of(backend(patch_selection_method="budget", alpha=0.5)(images=half_plain, alpha=0))
    with pytest.warns(UserWarning):
        assert torch.equal(found, expected(backend, patch_selection_method="budget", alpha=0.0))


@both_backends
@pytest.mark.parametrize("name", ["drop_tolerance", "predict_tolerance"])
@pytest.mark.parametrize("method", ["v1", "v2", "budget", "joint"])
def test_a_call_turns_dropping_off_and_on(backend, method, name, half_plain, expected):
    """`None` is "not given", 0 drops what is equal to the last grey level: so "off" says it."""
    settings = {"patch_selection_method": method, "alpha": 0.4}
    without, zero, much = (expected(backend, **settings, **{name: value}) for value in (None, 0, 100))
    assert len(much) < len(without) >= len(zero)
    by_attribute = backend(**settings, **{name: 100})
    assert torch.equal(layout_of(by_attribute(images=half_plain)), much)
    assert torch.equal(layout_of(by_attribute(images=half_plain, **{name: None})), much)
    assert torch.equal(layout_of(by_attribute(images=half_plain, **{name: 0})), zero)
    assert torch.equal(layout_of(by_attribute(images=half_plain, **{name: "off"})), without)
    off = backend(**settings, **{name: "off"})
    assert torch.equal(layout_of(off(images=half_plain)), without)
    assert torch.equal(layout_of(off(images=half_plain, **{name: 100})), much)


@both_backends
def test_other_instances_keep_their_settings(backend):
    backend(patch_selection_method="budget", alpha=0.5)
    assert (backend().patch_selection_method, backend().alpha) == ("v1", 1.0)


@both_backends
def test_thresholds(backend, half_plain, expected):
    given = layout_of(backend(thresholds=[5.0, 4.0])(images=half_plain))
    assert torch.equal(given, expected(backend, thresholds=[5.0, 4.0]))
    assert len(layout_of(backend()(images=half_plain, thresholds=(0, 0)))) == 12 * 16


def test_settings_are_saved_and_loaded(processor, half_plain, tmp_path):
    settings = {
        "patch_selection_method": "budget",
        "alpha": 0.25,
        "importance_method": "laplacian",
        "thresholds": [7, 8],
        "drop_tolerance": 30,
        "predict_tolerance": 60,
    }
    for name, value in settings.items():
        setattr(processor.image_processor, name, value)
    before = processor(images=half_plain, text=None)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    assert {name: saved[name] for name in settings} == settings
    assert not {"last_budget_info", "image_patch_layout"} & set(saved)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again.image_processor, name) for name in settings} == settings
    assert torch.equal(layout_of(again(images=half_plain)), layout_of(before))


@both_backends
def test_an_image_processor_alone_is_saved_and_loaded(backend, tmp_path):
    backend(patch_selection_method="v2", alpha=0.5).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["patch_selection_method"], saved["alpha"]) == ("v2", 0.5)
    for again in (backend.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert (again.patch_selection_method, again.alpha) == ("v2", 0.5)
    assert backend.from_pretrained(tmp_path, alpha=0.75).alpha == 0.75


def test_a_checkpoint_saved_with_the_patch_loads_without(processor, upstream, half_plain, tmp_path):
    processor.image_processor.patch_selection_method = "budget"
    processor.save_pretrained(tmp_path)
    with upstream():
        output = AutoProcessor.from_pretrained(tmp_path)(images=half_plain)
    assert "image_patch_layout" not in output and len(output["pixel_values"]) == 12 * 16


@both_backends
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_keep_the_settings(backend, duplicate, half_plain):
    original = backend(patch_selection_method="budget", alpha=0.5)
    expected = layout_of(original(images=half_plain))
    twin = duplicate(original)
    assert type(twin) is backend
    assert torch.equal(layout_of(twin(images=half_plain)), expected)


def test_a_processor_can_be_pickled(processor, prompt, half_plain):
    processor.image_processor.patch_selection_method = "off"
    twin = pickle.loads(pickle.dumps(processor))
    assert "image_patch_layout" not in twin(images=half_plain, text=prompt())


BAD_SETTINGS = [
    ({"patch_selection_method": "v3"}, ["'v3'", "'v1', 'v2', 'budget', 'joint', 'fit', 'off'"]),
    ({"importance_method": "magic"}, ["'magic'", "'entropy', 'laplacian', 'upsample_l4', 'upsample_mse'"]),
    ({"patch_selection_method": "budget", "alpha": 1.5}, ["alpha=1.5", "0 <= alpha <= 1"]),
    ({"patch_selection_method": "budget", "alpha": -0.1}, ["alpha=-0.1", "0 <= alpha <= 1"]),
    ({"patch_selection_method": "v2", "alpha": float("inf")}, ["alpha=inf", "finite alpha >= 0"]),
    ({"patch_selection_method": "v2", "alpha": -1.0}, ["alpha=-1.0", "finite alpha >= 0"]),
    ({"alpha": "much"}, ["'much'", "alpha"]),
    ({"thresholds": [1.0]}, ["thresholds=[1.0]", "expected 2 values"]),
    ({"thresholds": [1.0, float("nan")]}, ["NaN"]),
    ({"thresholds": "ab"}, ["'ab'", "thresholds"]),
    ({"drop_tolerance": -1}, ["drop_tolerance=-1", "0 to 255", "'off'"]),
    ({"drop_tolerance": 256}, ["drop_tolerance=256", "0 to 255"]),
    ({"drop_tolerance": float("nan")}, ["drop_tolerance=nan", "0 to 255"]),
    ({"drop_tolerance": float("inf")}, ["drop_tolerance=inf", "0 to 255"]),
    ({"drop_tolerance": True}, ["drop_tolerance=True", "a number of grey levels"]),
    ({"drop_tolerance": "2"}, ["drop_tolerance='2'", "a number of grey levels"]),
    ({"predict_tolerance": -1}, ["predict_tolerance=-1", "0 to 255", "'off'"]),
    ({"predict_tolerance": float("nan")}, ["predict_tolerance=nan", "0 to 255"]),
    ({"predict_tolerance": "2"}, ["predict_tolerance='2'", "a number of grey levels"]),
]


@both_backends
@pytest.mark.parametrize(
    ("settings", "words"), BAD_SETTINGS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_unusable_settings_are_refused(backend, settings, words, half_plain):
    """In a call, and where they are the processor's own: at the latest when it is used."""

    def assert_refused(use):
        with pytest.raises((ValueError, TypeError, StrictDataclassFieldValidationError)) as refusal:
            use()
        for word in words:
            assert word in str(refusal.value)

    assert_refused(lambda: backend()(images=half_plain, **settings))
    assert_refused(lambda: backend(**settings)(images=half_plain))

    def by_attribute():
        image_processor = backend()
        for name, value in settings.items():
            setattr(image_processor, name, value)
        image_processor(images=half_plain)

    assert_refused(by_attribute)


@both_backends
def test_a_bad_alpha_is_refused_although_its_method_is_an_attribute(backend, half_plain):
    with pytest.raises(ValueError, match=r"alpha=1\.5 with 'budget'"):
        backend(patch_selection_method="budget")(images=half_plain, alpha=1.5)


@both_backends
def test_an_alpha_of_the_attribute_does_not_bother_other_methods(backend, half_plain):
    backend(alpha=7.0)(images=half_plain)
    backend(patch_selection_method="budget", alpha=0.5)(images=half_plain, patch_selection_method="v2", alpha=7.0)


@both_backends
def test_other_patch_geometry(backend, half_plain):
    """Upstream's `patch_size` holds; a merge size that the layout does not know is refused, except for `off`."""
    output = backend()(images=half_plain, patch_size=16, return_tensors="pt", thresholds=[0, 0])
    assert output["image_grid_thw"].tolist() == [[1, 10, 14]] and output["pixel_values"].shape == (
        140,
        3 * 2 * 16 * 16,
    )
    with pytest.raises(ValueError, match=r"merge_size=1 .* expected 2"):
        backend()(images=half_plain, merge_size=1, patch_selection_method="v2")
    assert len(backend()(images=half_plain, merge_size=1, patch_selection_method="off")["image_grid_thw"]) == 1


@both_backends
def test_images_that_are_not_whole_cells_are_refused(backend):
    image = np.zeros((60, 56, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"60×56 px: expected sides that are multiples of 28"):
        backend()(images=image, do_resize=False)


@both_backends
def test_last_budget_info(backend, photos):
    image_processor = backend(patch_selection_method="budget", alpha=0.3)
    assert image_processor.last_budget_info is None
    output = image_processor(images=photos)
    infos = image_processor.last_budget_info
    grids = torch.as_tensor(np.asarray(output["image_grid_thw"]))
    for info, grid in zip(infos, grids.tolist(), strict=True):
        assert set(info) == {"base_tokens", "base_small_tokens", "budget", "k", "alpha", "actual"}
        assert info["base_small_tokens"] == grid[1] * grid[2] and info["alpha"] == 0.3
        assert info["budget"] == round(0.3 * grid[1] * grid[2])
        assert info["actual"] == info["base_tokens"] + 3 * info["k"] <= info["budget"]
    assert sum(info["actual"] for info in infos) == len(output["pixel_values"])
    assert backend().last_budget_info is None, "another processor answers for itself"
    for method in ("v1", "off"):
        image_processor(images=photos)
        image_processor(images=photos, patch_selection_method=method)
        assert image_processor.last_budget_info == [None] * 3


@both_backends
def test_last_budget_info_is_the_threads_own(backend, half_plain):
    image_processor = backend(patch_selection_method="budget", alpha=0.5)
    image_processor(images=half_plain)
    seen = []

    def work():
        seen.append(image_processor.last_budget_info)
        image_processor(images=half_plain, alpha=0.75)
        seen.append(image_processor.last_budget_info[0]["alpha"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, 0.75]
    assert image_processor.last_budget_info[0]["alpha"] == 0.5


def test_what_an_earlier_call_said_does_not_decide(half_plain):
    """Settings that are equal to Python are told apart, and nobody can write to those that are kept."""
    processor = Qwen2VLImageProcessor()
    given = {"patch_selection_method": "v1", "thresholds": (1, 2)}
    assert resolve(processor, given).values["thresholds"] == (1, 2)
    with pytest.raises(TypeError, match="thresholds holds numbers, got True"):
        resolve(processor, {**given, "thresholds": (True, 2)})
    listed = {**given, "thresholds": [1.0, 2.0]}
    resolve(processor, listed).values["thresholds"].append(5)
    assert resolve(processor, listed).used["thresholds"] == [1.0, 2.0]
    listed["thresholds"].append(3.0)
    with pytest.raises(ValueError, match=r"thresholds=\[1.0, 2.0, 3.0\] for 3 scales"):
        resolve(processor, listed)
