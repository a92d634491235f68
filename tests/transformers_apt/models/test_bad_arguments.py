"""Any value at all as a setting: it either works as documented or is refused by name, before an image is read."""

import sys

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from apt_code import PatchLayout

METHODS = ("v1", "v2", "budget", "joint", "off")
MAPS = ("entropy", "laplacian", "upsample_l4", "upsample_mse")
REFUSALS = (ValueError, TypeError, StrictDataclassFieldValidationError)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8))

numbers = (
    st.floats() | st.integers() | st.sampled_from([0, 1, 0.3, 1.0, 10**400, 1e308, 5e-324, -0.0, np.float64(0.5)])
)
rubbish = (
    st.booleans()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
    | st.lists(numbers, max_size=3)
    | st.sampled_from([np.array([3.0, 2.0]), torch.tensor([3.0, 2.0]), 1j, object, {1, 2}, np.float32(0.5)])
)
settings_of_a_call = st.fixed_dictionaries(
    {},
    optional={
        "patch_selection_method": st.none() | st.sampled_from(METHODS) | rubbish | numbers,
        "alpha": st.none() | numbers | st.floats(0, 1) | rubbish,
        "importance_method": st.none() | st.sampled_from(MAPS) | rubbish | numbers,
        "thresholds": st.none() | st.lists(numbers, min_size=2, max_size=2) | st.tuples(numbers, numbers) | rubbish,
    },
)


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_threshold(value):
    """Any float but NaN, or an integer that a float can hold."""
    return is_number(value) and (value == value if isinstance(value, float) else abs(value) <= sys.float_info.max)


def wrong_in(settings):
    """The names of the settings that the documentation does not allow, worked out without the package."""
    method = settings.get("patch_selection_method")
    method = "v1" if method is None else method
    wrong = set()
    if not (isinstance(method, str) and method in METHODS):
        wrong.add("patch_selection_method")
    importance = settings.get("importance_method")
    if importance is not None and not (isinstance(importance, str) and importance in MAPS):
        wrong.add("importance_method")
    alpha = settings.get("alpha")
    if alpha is not None:
        highest = {"budget": 1, "joint": 1, "v2": sys.float_info.max}.get(method if isinstance(method, str) else "")
        if not is_number(alpha) or (highest is not None and not 0 <= alpha <= highest):
            wrong.add("alpha")
    thresholds = settings.get("thresholds")
    if thresholds is not None and not (
        isinstance(thresholds, (list, tuple)) and len(thresholds) == 2 and all(map(is_threshold, thresholds))
    ):
        wrong.add("thresholds")
    return wrong


def by_call(backend, settings):
    return backend()(images=IMAGE, return_tensors="pt", **settings)


def by_constructor(backend, settings):
    return backend(**settings)(images=IMAGE, return_tensors="pt")


def by_attribute(backend, settings):
    image_processor = backend()
    for name, value in settings.items():
        setattr(image_processor, name, value)
    return image_processor(images=IMAGE, return_tensors="pt")


@pytest.mark.generated
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [by_call, by_constructor, by_attribute], ids=lambda way: way.__name__)
@given(settings=settings_of_a_call, backend=st.sampled_from([Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]))
@example(settings={"importance_method": [3, 2]}, backend=Qwen2VLImageProcessor)  # could not be looked up in the table
@example(
    settings={"patch_selection_method": np.array([3.0, 2.0])}, backend=Qwen2VLImageProcessor
)  # has no truth value
@example(settings={"thresholds": [10**400, 1]}, backend=Qwen2VLImageProcessor)  # no float can hold it
@example(settings={"patch_selection_method": "v2", "alpha": 10**400}, backend=Qwen2VLImageProcessor)
def test_any_settings_work_or_are_refused_by_name(way, settings, backend):
    wrong = wrong_in(settings)
    try:
        found = way(backend, settings)
    except REFUSALS as refusal:
        message = str(refusal)
        assert wrong or not plain(settings), f"refused, but documented to work: {message}"
        named = [name for name in settings if name in message]
        assert named, f"names no setting: {message}"
        value = settings[named[0]]
        shown = [repr(value), str(value), repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)]
        assert any(text in message for text in shown), f"does not say what {named[0]} was: {message}"
        assert any(word in message for word in ("expected", " is a ", "holds numbers", "match any type")), message
        return
    assert not wrong, f"accepted, but not documented: {wrong}"
    method = settings.get("patch_selection_method") or "v1"
    assert ("image_patch_layout" in found) == (method != "off")
    if method != "off":
        (layout,) = PatchLayout.unpack(found["image_patch_layout"], found["image_grid_thw"])
        assert layout.num_patches == len(found["pixel_values"]) and bool(found["pixel_values"].isfinite().all())
        if method in ("budget", "joint"):
            alpha = 1.0 if settings.get("alpha") is None else settings["alpha"]
            h, w = layout.grid
            assert layout.num_patches <= max(round(alpha * h * w), coarsest(h, w))


def plain(settings):
    """Upstream checks the types of a call's arguments, and takes no subclass of `float` or `str` for the real one."""
    values = [
        *settings.values(),
        *(v for value in settings.values() if isinstance(value, (list, tuple)) for v in value),
    ]
    return not any(isinstance(value, np.generic) for value in values)


def coarsest(h, w):
    """Patches of the coarsest tiling: whole 56-px cells, and whole 28-px cells beside them."""
    whole = (h // 4) * (w // 4)
    return whole + (h // 2) * (w // 2) - 4 * whole
