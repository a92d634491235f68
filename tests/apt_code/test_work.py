"""How much work is done, counted rather than timed: launches, waits for a GPU, bytes."""

import sys

import pytest
import torch

from apt_code import PatchLayout, PatchTokenizer
from apt_code.device.selection import select_batches
from apt_code.importance import IMPORTANCE_METHODS
from apt_code.importance.entropy import compute_patch_entropy_batched
from apt_code.patch_packing import RowPacker, pack_patches
from benchmarks.memory import grown
from tests.apt_code.device_traffic import Traffic
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


@pytest.mark.parametrize("tolerances", [{}, {"drop_tolerance": 2}, {"predict_tolerance": 4}], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("importance_method", IMPORTANCE_METHODS)
def test_batches_on_a_device_are_waited_for_once(method, importance_method, tolerances):
    batches = [
        torch.empty(n, 3, *size, dtype=torch.uint8, device="meta") for n, size in ((5, (168, 112)), (1, (56, 56)))
    ]
    tokenizer = PatchTokenizer(
        patch_selection_method=method, alpha=0.7, importance_method=importance_method, **tolerances
    )
    with Traffic() as traffic:
        found = select_batches(tokenizer, batches)
    assert len(traffic.to_host) == 1 and not traffic.to_device
    pixels = sum(images.numel() for images in batches)
    assert (traffic.to_host[0] > pixels) == ("predict_tolerance" in tolerances), "pixels are fetched to be compared"
    assert [len(layouts) for layouts, _ in found] == [5, 1]
    for layouts, info in found:
        assert all(layout.num_language_tokens == 1 for layout in layouts) or not tolerances, "all is black"
        assert info is None or info["budget"] == round(0.7 * layouts[0].grid[0] * layouts[0].grid[1])


def test_rows_of_batches_on_a_device_take_one_upload_and_no_wait():
    coarse = PatchLayout((4, 6), torch.tensor([[0, 0, 4], [0, 4, 2], [2, 4, 1], [2, 5, 1], [3, 4, 1], [3, 5, 1]]))
    layouts = [[coarse, PatchLayout.uniform((4, 6))], [PatchLayout.uniform((2, 2))]]
    images = [
        torch.empty(len(found), 3, *size, dtype=torch.uint8, device="meta")
        for found, size in zip(layouts, ((56, 84), (28, 28)), strict=True)
    ]
    rows = torch.empty(6 + 24 + 4, 3 * 2 * 14 * 14, device="meta")
    with Traffic() as traffic:
        RowPacker(14, 2, lambda pixels: pixels).write_batches(
            list(zip(images, layouts, [[0, 10], [6]], strict=True)), rows
        )
    assert (traffic.to_host, traffic.to_device) == ([], [8 * len(rows)]), "a number per patch"


def test_images_of_one_shape_cost_a_device_as_many_launches_as_one():
    counts = []
    for batch in (1, 1, 7):  # what is kept from call to call is made in the first one
        images = torch.empty(batch, 3, 112, 112, dtype=torch.uint8, device="meta")
        with Traffic() as traffic:
            PatchTokenizer(drop_tolerance=2, importance_method="upsample_mse").select_layouts(images)
        counts.append(traffic.launches)
    assert 0 < counts[1] == counts[2]


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
