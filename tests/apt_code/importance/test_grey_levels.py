"""Which pixels can be grey levels, and what is said of others."""

import math
import warnings

import pytest
import torch

from apt_code.importance import (
    IMPORTANCE_METHODS,
)
from apt_code.importance.common import are_grey_levels
from apt_code.importance.entropy import compute_patch_entropy_batched


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.1, 2.6), (0.0, 65535.0)])
def test_pixels_that_are_no_grey_levels_are_named(low, high):
    noise = torch.rand(1, 3, 56, 56) * (high - low) + low
    for method in IMPORTANCE_METHODS.values():
        with pytest.warns(UserWarning, match="expected grey levels from 0 to 255.*multiply"):
            method.compute(noise, 14, 3)


def test_grey_levels_are_not_warned_of(recwarn):
    noise = torch.rand(1, 3, 56, 56)
    for images in (noise * 255, noise * 3, noise * 260 - 4, torch.full((1, 3, 56, 56), 0.5)):
        compute_patch_entropy_batched(images, 14, 3)
    assert not recwarn.list


def test_many_unreadable_images_are_warned_of_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # once for each place and text
        for seed in range(20):
            noise = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
            compute_patch_entropy_batched(noise * (1 + seed / 20) - seed, 14, 2)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("lowest", "highest", "readable"),
    [
        (0, 255, True),
        (-12.7, 200, True),  # 5 % of 255 are 12.75
        (-12.8, 200, False),
        (0, 267.7, True),
        (0, 267.8, False),
        (-12.7, 267.7, True),
        (-3, 12.8, True),  # below 0 there is nothing without something bright
        (-3, 12.7, False),
        (-0.1, 12.7, False),
        (0, 12.7, True),
        (0, 1.01, True),
        (0, 1, False),
        (-1, 1, False),
        (0, 0, True),
        (0.5, 0.5, True),
        (-12.7, -12.7, True),
        (-12.8, -12.8, False),
        (267.8, 267.8, False),
        (math.nan, math.nan, False),
    ],
)
def test_grey_levels_overshoot_by_five_percent_at_most(lowest, highest, readable):
    assert are_grey_levels(lowest, highest) == readable
    # of a whole batch, as the image processor asks
    found = are_grey_levels(torch.tensor([lowest, 0.0]), torch.tensor([highest, 255.0]))
    assert found.tolist() == [readable, True]
    if math.isnan(lowest):
        return
    images = torch.full((1, 3, 28, 28), float(lowest))
    images[..., ::2] = highest
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for method in IMPORTANCE_METHODS.values():
            method.compute(images, 14, 2)
    assert len(caught) == (0 if readable else len(IMPORTANCE_METHODS))
