"""How much work is done, counted rather than timed: launches, waits for a GPU, bytes."""

import sys

import pytest
import torch

from apt_code import PatchLayout, PatchTokenizer
from apt_code.importance import IMPORTANCE_METHODS
from apt_code.importance.entropy import compute_patch_entropy_batched
from apt_code.patch_packing import RowPacker, pack_patches
from benchmarks.memory import grown
from tests.apt_code.kernels import KERNELS

SELECTION_KERNELS = ("entropies", "split_scores", "keep_all_but_best", "canonical_patches")
METHODS = ("v1", "v2", "budget", "joint")


@pytest.fixture
def launches(monkeypatch):
    """`{kernel: calls}`."""
    counted: dict[str, int] = {}
    for module, name in KERNELS:
        kernel = getattr(module, name)

        def count(*args, name=name, kernel=kernel):
            counted[name] = counted.get(name, 0) + 1
            return kernel(*args)

        monkeypatch.setattr(module, name, count)
    return counted


@pytest.mark.parametrize("batch", [1, 7])
def test_a_batch_costs_as_many_launches_as_an_image(launches, batch):
    images = torch.randint(0, 256, (batch, 3, 112, 112), dtype=torch.uint8)
    for importance_method in ("entropy", "upsample_mse", "upsample_l4"):
        tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=0.5, importance_method=importance_method)
        RowPacker(14, 2, lambda pixels: pixels)(images, tokenizer.select_layouts(images))
    assert launches == {
        "entropies": 1,
        "upsampling_losses": 4,  # one per coarse scale, of either kind
        "split_scores": 3,
        "keep_all_but_best": 3,
        "canonical_patches": 3,
        "gather_rows": 3,
    }


def test_dropping_costs_a_launch_for_each_image(launches):
    """Its sums belong to one image's tiling, both rules share the walk, and without a tolerance it costs nothing."""
    images = torch.zeros((3, 3, 112, 112), dtype=torch.uint8)
    for flat, predict, calls in ((None, "off", 0), ("off", None, 0), (2, None, 3), (None, 2, 3), (2, 2, 3)):
        launches.clear()
        layouts = PatchTokenizer(drop_tolerance=flat, predict_tolerance=predict).select_layouts(images)
        assert launches.get("keep_unlike", 0) == calls
        assert [len(layout) for layout in layouts] == [1 if calls else 4] * 3


def test_a_budget_for_everything_reads_no_pixel(launches):
    images = torch.randint(0, 256, (3, 3, 112, 126), dtype=torch.uint8)
    for alpha, kernels_used in ((1.0, {}), (0.9, dict.fromkeys(SELECTION_KERNELS, 1))):
        launches.clear()
        tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=alpha)
        layouts = tokenizer.select_layouts(images)
        assert launches == kernels_used
        assert [len(layout) for layout in layouts] == [tokenizer.last_budget_info["actual"]] * 3
    everything = PatchTokenizer(patch_selection_method="budget").select_layouts(images)
    for layout, wanted in zip(
        everything, PatchTokenizer(patch_selection_method="budget")(images).layouts, strict=True
    ):
        assert layout.grid == wanted.grid and torch.equal(layout.patches, wanted.patches)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("importance_method", IMPORTANCE_METHODS)
def test_a_batch_on_a_device_is_waited_for_once(monkeypatch, method, importance_method):
    """Meta tensors hold no values: whatever would make the host wait for one raises, but for the copy counted here."""
    copies = []

    def cpu(tensor):
        if tensor.is_meta:
            copies.append(tensor.numel())
            return torch.ones(tensor.shape, dtype=tensor.dtype)
        return tensor

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    images = torch.empty(5, 3, 168, 140, dtype=torch.uint8, device="meta")
    tokenizer = PatchTokenizer(patch_selection_method=method, alpha=0.7, importance_method=importance_method)
    layouts = tokenizer.select_layouts(images)
    assert copies == [5 * 12 * 10], "one number per base cell, once"
    assert [len(layout) for layout in layouts] == [12 * 10] * 5
    assert tokenizer.last_budget_info is None or tokenizer.last_budget_info["budget"] == 84


def test_packing_on_a_device_is_not_waited_for():
    images = torch.empty(2, 3, 56, 84, dtype=torch.uint8, device="meta")
    coarse = PatchLayout((4, 6), torch.tensor([[0, 0, 4], [0, 4, 2], [2, 4, 1], [2, 5, 1], [3, 4, 1], [3, 5, 1]]))
    packed = pack_patches(images, [coarse, PatchLayout.uniform((4, 6))], 14)
    assert packed.is_meta and packed.shape == (6 + 24, 3, 14, 14)


def peak(work) -> int:
    try:
        return grown(work)
    except OSError:
        pytest.skip("needs /proc/self/clear_refs to measure a peak of memory")


@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_entropy_needs_less_than_four_bytes_per_pixel():
    images = torch.randint(0, 256, (1, 3, 2100, 2800), dtype=torch.uint8)
    compute_patch_entropy_batched(images[..., :56, :56], 14, 3)  # compiled and loaded
    pixels = 2100 * 2800
    assert peak(lambda: compute_patch_entropy_batched(images, 14, 3)) < 4 * pixels
    # the measure sees what it should: the plain code's int64 pixels alone are twice that (some pages may be there)
    assert peak(lambda: images[:, 0].long().add(1)) > 7 * pixels
