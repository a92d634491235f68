"""How much work an image processor's call does, next to upstream's: bytes, and copies of the rows."""

import sys

import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from tests.apt_code.test_work import peak
from transformers_apt.models import selector

BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
LARGE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
SETTINGS = (
    {"patch_selection_method": "budget", "alpha": 0.3},
    {"patch_selection_method": "budget", "alpha": 1.0},
    {"patch_selection_method": "v1", "thresholds": [0.0, 0.0]},  # keeps everything, and cannot know that it will
    {"patch_selection_method": "budget", "alpha": 0.3, "importance_method": "upsample_mse"},
)


@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_peak_memory_is_at_most_upstreams(backend, settings, photos):
    image_processor = backend(size=LARGE)
    image = photos[0].resize((2800, 2100), Image.Resampling.BICUBIC)

    def work(**settings):
        image_processor(images=image, return_tensors="pt", **settings)

    work(**settings)  # compiled and loaded
    upstream = peak(lambda: work(patch_selection_method="off"))
    rows = 2800 * 2100 * 3 * 2 * 4
    assert upstream > 0.95 * rows, "the rows alone are more than that: the measure is blind"
    assert peak(lambda: work(**settings)) <= upstream * 1.02  # the allocator's own ups and downs


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_images_of_one_shape_are_one_batch(backend, half_plain, monkeypatch):
    batches = []
    choose = selector.PatchSelector._to_choose_on

    def count(self, images, readable):
        batches.append(len(images))
        return choose(self, images, readable)

    monkeypatch.setattr(selector.PatchSelector, "_to_choose_on", count)
    images = [half_plain, half_plain.rotate(180), half_plain.resize((112, 84)), half_plain.rotate(90)]
    together = backend()(images=images, return_tensors="pt", alpha=0.4, patch_selection_method="budget")
    assert sorted(batches) == [1, 3]
    batches.clear()
    one_by_one = backend()(
        images=images, return_tensors="pt", alpha=0.4, patch_selection_method="budget", disable_grouping=True
    )
    assert batches == [1] * 4
    for name, value in together.items():
        assert torch.equal(one_by_one[name], value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_that_are_large_are_not_copied_together(backend, photos, monkeypatch):
    stacked = []
    stack = torch.stack
    monkeypatch.setattr(selector.torch, "stack", lambda tensors, *a, **k: stacked.append(1) or stack(tensors, *a, **k))
    large = photos[0].resize((700, 560))
    backend()(images=[large, large.rotate(180)], return_tensors="pt", patch_selection_method="v1")
    assert not stacked
