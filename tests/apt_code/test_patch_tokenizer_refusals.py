"""What `PatchTokenizer` refuses, and in which words."""

import math
import re

import pytest

from apt_code import PatchTokenizer
from tests.apt_code.references import pictures


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_scales": 0}, ValueError, "num_scales=0: expected 1, 2, 3 or 4"),
        ({"num_scales": 5}, ValueError, "num_scales=5: expected"),
        ({"base_patch_size": 0}, ValueError, "base_patch_size=0: expected 1 or more"),
        ({"importance_method": "sobel"}, ValueError, "importance_method='sobel': expected one of ['entropy', "),
        ({"importance_method": ["v1"]}, ValueError, "importance_method=['v1']: expected one of ['entropy', "),
        ({"base_patch_size": 14.0}, TypeError, "base_patch_size=14.0 of type float: expected an integer"),
        ({"mean": [0.5] * 3}, ValueError, "mean=[0.5, 0.5, 0.5] and std=None: give both"),
        ({"std": [0.5] * 3}, ValueError, "mean=None and std=[0.5, 0.5, 0.5]: give both"),
        ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens=-1: expected 0 or more"),
        ({"bins": 0}, ValueError, "bins=0: expected 1 or more"),
        ({"thresholds": [3.0]}, ValueError, "thresholds=[3.0] for 3 scales: expected 2 values"),
        ({"thresholds": "32"}, TypeError, "got '32'"),
        ({"patch_selection_method": "v3"}, ValueError, "patch_selection_method='v3': expected one of ['v1', 'v2', "),
        ({"patch_selection_method": "off"}, ValueError, "patch_selection_method='off': expected one of"),
        ({"patch_selection_method": "budget", "alpha": 1.5}, ValueError, "alpha=1.5 with 'budget'"),
        ({"patch_selection_method": "v2", "alpha": -1}, ValueError, "alpha=-1 with 'v2'"),
        ({"alpha": "0.3"}, TypeError, "alpha is a number, got '0.3' of type str"),
    ],
)
def test_constructor_refusals(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        PatchTokenizer(**arguments)


@pytest.mark.parametrize(
    ("method", "alpha", "error", "message"),
    [
        ("v3", None, ValueError, "patch_selection_method='v3': expected one of ['v1', 'v2', 'budget', 'joint']"),
        ("", None, ValueError, "patch_selection_method='': expected one of"),
        ("budget", 1.5, ValueError, "alpha=1.5 with 'budget'"),
        ("budget", None, ValueError, "alpha=1.5 with 'budget'"),  # the constructor's alpha does not fit the method
        ("v2", math.nan, ValueError, "alpha=nan with 'v2'"),
        (None, True, TypeError, "alpha is a number, got True of type bool"),
    ],
)
def test_call_refusals(method, alpha, error, message):
    images = pictures(56, 56)
    tokenizer = PatchTokenizer(patch_selection_method="v2", alpha=1.5)
    maps = tokenizer.compute_importance_maps(images)
    for call in (lambda: tokenizer.construct_masks(maps, method, alpha), lambda: tokenizer(images, method, alpha)):
        with pytest.raises(error, match=re.escape(message)):
            call()


def test_another_image_size_is_refused():
    tokenizer = PatchTokenizer(image_size=(56, 70))
    tokenizer(pictures(56, 70))
    message = "images are (70, 56) pixels, this tokenizer was made for (56, 70); resize them, or build it with"
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer(pictures(70, 56))


def test_masks_of_other_images_are_refused():
    masks = PatchTokenizer()(pictures(56, 56)).masks
    message = "masks[14] has shape (2, 4, 4), expected (2, 5, 4) for images of shape (2, 3, 57, 56); construct the"
    with pytest.raises(ValueError, match=re.escape(message)):
        PatchTokenizer().construct_patch_groups(pictures(57, 56), masks)
    with pytest.raises(ValueError, match=r"expected \(1, 4, 4\)"):
        PatchTokenizer().construct_patch_groups(pictures(56, 56, batch=1), masks)


@pytest.mark.parametrize(("values", "channels"), [(3, 1), (2, 3), (1, 3)])
def test_mean_and_std_are_per_channel(values, channels):
    tokenizer = PatchTokenizer(mean=[0.5] * values, std=[0.5] * values)
    with pytest.raises(
        ValueError, match=rf"images of {channels} channel\(s\): expected one value of each per channel"
    ):
        tokenizer(pictures(28, 28, channels=channels))
    with pytest.raises(ValueError, match="one value of each per channel"):
        PatchTokenizer(mean=[0.5] * 3, std=[0.5])(pictures(28, 28))


def test_maps_of_another_number_of_scales_are_refused():
    maps = PatchTokenizer(2).compute_importance_maps(pictures(56, 56))
    with pytest.raises(ValueError, match=r"thresholds=\[3.0, 2.0\] for 2 scales: expected 1 values"):
        PatchTokenizer(3).construct_masks(maps)


@pytest.mark.parametrize("importance_method", ["entropy", "upsample_mse"])
@pytest.mark.parametrize("thresholds", [[1e9] * 3, [1e9], [float("nan"), 16.0], [True, True], [10**400, 1]])
def test_thresholds_that_were_set_later_are_checked_too(importance_method, thresholds):
    tokenizer = PatchTokenizer(importance_method=importance_method)
    tokenizer.thresholds = thresholds
    with pytest.raises((TypeError, ValueError), match="thresholds"):
        tokenizer.select_layouts(pictures(56, 56))
