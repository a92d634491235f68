"""`PatchTokenizer`: the founding documents' calls, against the same steps taken slowly."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_code import PatchLayout, PatchTokenizer
from apt_code.entropy_utils import (
    IMPORTANCE_METHODS,
    compute_patch_entropy_batched,
    compute_patch_laplacian_batched,
    compute_patch_upsample_mse_batched,
)
from apt_code.patch_selection import (
    lay_out,
    select_patches_by_budget,
    select_patches_by_threshold,
    select_patches_by_threshold_v2,
)
from tests.apt_code import references
from tests.apt_code.references import assert_same_maps, canonical, pictures, tiling_of_masks
from tests.apt_code.test_patch_packing import slow_patch

pytestmark = pytest.mark.filterwarnings("ignore:alpha=:UserWarning")

selections = st.one_of(
    st.just({"patch_selection_method": "v1"}),
    st.builds(lambda alpha: {"patch_selection_method": "v2", "alpha": alpha}, st.floats(0, 2)),
    st.builds(lambda alpha: {"patch_selection_method": "budget", "alpha": alpha}, st.floats(0, 1)),
)


def slow_sequence(images: torch.Tensor, masks: dict[int, torch.Tensor], side: int) -> list[np.ndarray]:
    """The patches of all images in canonical order, cropped and averaged one by one."""
    return [
        slow_patch(image, *patch, side)
        for i, image in enumerate(images)
        for patch in canonical(tiling_of_masks({key: mask[i] for key, mask in masks.items()}))
    ]


# -------------------------------------------------------------------- the founding documents' walk


def test_the_documented_walk():
    images = pictures(120, 146, batch=1)
    tokenizer = PatchTokenizer(
        num_scales=3,
        base_patch_size=14,
        image_size=(120, 146),
        thresholds=[3, 2],
        mean=[0.0, 0.0, 0.0],
        std=[1 / 255] * 3,
    )
    maps = tokenizer.compute_importance_maps(images)
    assert {side: tuple(m.shape) for side, m in maps.items()} == {14: (1, 9, 11), 28: (1, 5, 6), 56: (1, 3, 3)}
    assert_same_maps(maps, compute_patch_entropy_batched(images, 14, 3))
    masks, output_mask, seqlens = tokenizer.construct_masks(maps)
    assert_same_maps(masks, select_patches_by_threshold(maps, [3, 2]))
    groups = tokenizer.construct_patch_groups(images, masks)
    assert {f"resized_patches_{side}" for side in (14, 28, 56)} <= set(groups)
    count = sum(int(mask.sum()) for mask in masks.values())
    assert seqlens.tolist() == [count] and len(output_mask) == count
    assert count == sum(len(groups[f"resized_patches_{side}"]) for side in (14, 28, 56)) < 9 * 11
    assert tokenizer.last_budget_info is None


def test_argument_names_are_the_documents():
    constructor = list(inspect.signature(PatchTokenizer).parameters)
    assert constructor[:6] == ["num_scales", "base_patch_size", "image_size", "thresholds", "mean", "std"]
    masks = inspect.signature(PatchTokenizer.construct_masks).parameters
    assert list(masks) == ["self", "batch_maps", "patch_selection_method", "alpha"]
    assert list(inspect.signature(PatchTokenizer.construct_patch_groups).parameters) == ["self", "images", "masks"]


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    num_scales=st.integers(1, 4),
    side=st.sampled_from([5, 8, 14]),
    num_prefix_tokens=st.integers(0, 2),
    options=selections,
    importance_method=st.sampled_from(sorted(IMPORTANCE_METHODS)),
)
def test_forward_is_the_three_steps_in_canonical_order(
    height, width, num_scales, side, num_prefix_tokens, options, importance_method
):
    images = pictures(height, width)
    tokenizer = PatchTokenizer(
        num_scales, side, num_prefix_tokens=num_prefix_tokens, importance_method=importance_method, **options
    )
    result = tokenizer(images)
    expected = np.stack(slow_sequence(images, result.masks, side))
    assert result.patches.dtype == torch.float32
    assert torch.equal(result.patches, torch.from_numpy(expected).float())
    masks, output_mask, seqlens = tokenizer.construct_masks(tokenizer.compute_importance_maps(images))
    assert_same_maps(masks, result.masks)
    assert torch.equal(output_mask, result.output_mask) and torch.equal(seqlens, result.seqlens)
    marks, lengths = [], []
    grid = (math.ceil(height / side), math.ceil(width / side))
    for i, layout in enumerate(result.layouts):
        patches = canonical(tiling_of_masks({key: mask[i] for key, mask in masks.items()}))
        assert (layout.grid, layout.patches.tolist()) == (grid, [list(patch) for patch in patches])
        layout.validate()
        marks += [-1] * num_prefix_tokens + [size for *_, size in patches]
        lengths.append(num_prefix_tokens + len(patches))
    assert (output_mask.tolist(), output_mask.dtype) == (marks, torch.int64)
    assert (seqlens.tolist(), seqlens.dtype) == (lengths, torch.int64)
    for layout, selected in zip(result.layouts, tokenizer.select_layouts(images), strict=True):
        assert torch.equal(layout.patches, selected.patches)


@settings(max_examples=40)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    num_scales=st.integers(1, 4),
    side=st.sampled_from([5, 14, 16]),
    channels=st.sampled_from([1, 3]),
    options=selections,
)
def test_patch_groups(height, width, num_scales, side, channels, options):
    images = pictures(height, width, channels=channels)
    tokenizer = PatchTokenizer(num_scales, side, **options)
    masks, _, _ = tokenizer.construct_masks(tokenizer.compute_importance_maps(images))
    groups = tokenizer.construct_patch_groups(images, masks)
    sides = [side * 2**scale for scale in range(num_scales)]
    assert set(groups) == {f"resized_patches_{s}" for s in sides} | {f"constituent_patches_{s}" for s in sides[1:]}
    in_order = {}
    for size in (s // side for s in sides):
        places = [(i, row, col) for i, row, col in masks[side * size].nonzero().tolist()]  # image by image, raster
        resized = groups[f"resized_patches_{side * size}"]
        assert resized.shape == (len(places), channels, side, side) and resized.dtype == torch.float32
        for (i, row, col), patch in zip(places, resized, strict=True):
            slow = torch.from_numpy(slow_patch(images[i], row * size, col * size, size, side)).float()
            assert torch.equal(patch, slow)
            in_order[i, row * size // 2, col * size // 2, row * size % 2, col * size % 2] = patch
        if size == 1:
            continue
        parts = groups[f"constituent_patches_{side * size}"]
        assert parts.shape == (len(places), size**2, channels, side, side) and parts.dtype == torch.float32
        for (i, row, col), own in zip(places, parts, strict=True):
            for part, (down, right) in zip(own, np.ndindex(size, size), strict=True):
                top, left = (row * size + down) * side, (col * size + right) * side
                assert torch.equal(part, images[i, :, top : top + side, left : left + side].float())
    # the same patches, sorted by image and canonical order, are the sequence that forward returns
    reordered = torch.stack([in_order[key] for key in sorted(in_order)])
    assert torch.equal(tokenizer(images).patches, reordered)


def test_incomplete_base_cells_are_zero_padded():
    images = torch.full((1, 3, 17, 15), 200, dtype=torch.uint8)
    groups = PatchTokenizer().construct_patch_groups(images, PatchTokenizer()(images).masks)
    corner = groups["resized_patches_14"][3]
    assert corner.count_nonzero() == 3 * 3 * 1 and torch.equal(corner[:, :3, :1], torch.full((3, 3, 1), 200.0))


def test_patches_are_normalised_per_channel():
    images = pictures(70, 70)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    plain, normal = PatchTokenizer(), PatchTokenizer(mean=mean, std=std)
    result = normal(images)
    slow = np.stack(slow_sequence(images, result.masks, 14))
    expected = (slow / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(result.patches.numpy(), expected, rtol=0, atol=2e-6)
    assert_same_maps(plain(images).masks, result.masks)  # selection looks at the pixels, not at normalised ones
    groups = normal.construct_patch_groups(images, result.masks)
    for name, raw in plain.construct_patch_groups(images, result.masks).items():
        expected = (raw.double().numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        np.testing.assert_allclose(groups[name].numpy(), expected, rtol=0, atol=2e-6)


# -------------------------------------------------------------------- settings


def test_call_beats_constructor():
    images = pictures(112, 112)
    tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=0.9)
    maps = tokenizer.compute_importance_maps(images)
    for given_method, given_alpha, expected in (
        (None, None, select_patches_by_budget(maps, 0.9)),
        (None, 0.5, select_patches_by_budget(maps, 0.5)),
        (None, 0, select_patches_by_budget(maps, 0)),
        ("v2", None, select_patches_by_threshold_v2(maps, 0.9)),
        ("v2", 0.3, select_patches_by_threshold_v2(maps, 0.3)),
        ("v1", 0.3, select_patches_by_threshold(maps, [3, 2])),
    ):
        assert_same_maps(tokenizer.construct_masks(maps, given_method, given_alpha)[0], expected)
        assert_same_maps(tokenizer(images, patch_selection_method=given_method, alpha=given_alpha).masks, expected)
    assert (tokenizer.patch_selection_method, tokenizer.alpha) == ("budget", 0.9)


def test_defaults():
    tokenizer = PatchTokenizer()
    assert (tokenizer.num_scales, tokenizer.base_patch_size, tokenizer.patch_selection_method) == (3, 14, "v1")
    assert (tokenizer.alpha, tokenizer.importance_method, tokenizer.thresholds) == (1.0, "entropy", [3.0, 2.0])
    assert (tokenizer.num_prefix_tokens, tokenizer.bins, tokenizer.last_budget_info) == (0, 512, None)
    for method, row in IMPORTANCE_METHODS.items():
        assert PatchTokenizer(4, importance_method=method).thresholds == row.thresholds(4)


def test_importance_method_and_bins_reach_the_map():
    images = pictures(60, 60)
    for method, compute in {
        "laplacian": compute_patch_laplacian_batched,
        "upsample_mse": compute_patch_upsample_mse_batched,
    }.items():
        found = PatchTokenizer(4, 7, importance_method=method).compute_importance_maps(images)
        assert_same_maps(found, compute(images, 7, 4))
    found = PatchTokenizer(bins=16).compute_importance_maps(images)
    assert_same_maps(found, compute_patch_entropy_batched(images, 14, 3, bins=16))


def test_upsample_mse_budget_scores_coarse_cells_by_their_own_value():
    images = pictures(112, 112)
    tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=0.4, importance_method="upsample_mse")
    maps = tokenizer.compute_importance_maps(images)
    masks, _, _ = tokenizer.construct_masks(maps)
    for i in range(len(images)):
        image = {side: m[i].double().numpy() for side, m in maps.items()}
        assert (
            tiling_of_masks({side: m[i] for side, m in masks.items()})
            == references.select_budget(image, 0.4, coarse_scores=True)[0]
        )


def test_last_budget_info():
    tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=0.3)
    images = pictures(196, 196)
    worked_example = {"base_tokens": 22, "base_small_tokens": 196, "budget": 59, "k": 12, "alpha": 0.3, "actual": 58}
    assert tokenizer(images).seqlens.tolist() == [58, 58]
    assert tokenizer.last_budget_info == worked_example
    tokenizer.construct_masks(tokenizer.compute_importance_maps(images), alpha=1.0)
    assert (tokenizer.last_budget_info["k"], tokenizer.last_budget_info["actual"]) == (58, 196)
    tokenizer(images, "v1")
    assert tokenizer.last_budget_info is None, "an info of an earlier call would be taken for this one's"
    tokenizer.select_layouts(images)
    assert tokenizer.last_budget_info == worked_example
    with_class_token = PatchTokenizer(patch_selection_method="budget", alpha=0.3, num_prefix_tokens=1)
    assert with_class_token(images).seqlens.tolist() == [59, 59]
    assert with_class_token.last_budget_info == worked_example, "the budget counts patches, not class tokens"


def test_all_patches_kept_are_upstreams_patches_in_upstreams_order():
    images = pictures(112, 84)
    result = PatchTokenizer(patch_selection_method="budget", alpha=1.0)(images)
    # upstream: (b, c, h/2, 2, p, w/2, 2, p) -> (b, h/2, w/2, 2, 2, c, p, p)
    upstream = images.reshape(2, 3, 4, 2, 14, 3, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 3, 14, 14)
    assert torch.equal(result.patches, upstream.float())


def test_an_image_does_not_depend_on_its_batch():
    images = pictures(100, 130, batch=3)
    for options in ({}, {"patch_selection_method": "v2"}, {"patch_selection_method": "budget", "alpha": 0.5}):
        tokenizer = PatchTokenizer(mean=[0.5] * 3, std=[0.3] * 3, **options)
        together = tokenizer(images)
        start = 0
        for i, length in enumerate(together.seqlens.tolist()):
            alone = tokenizer(images[i : i + 1])
            assert torch.equal(alone.patches, together.patches[start : start + length])
            assert torch.equal(alone.layouts[0].patches, together.layouts[i].patches)
            start += length


def test_thresholds_out_of_reach_are_warned_of():
    """[36, 36] is meant for `upsample_mse`; entropy ends at 9 bits, so without a word it keeps 35 patches of 392."""
    match = r"thresholds=\[36.0, 36.0\] with the importance map 'entropy'.*never be reached"
    with pytest.warns(UserWarning, match=match) as caught:
        tokenizer = PatchTokenizer(thresholds=[36, 36])
    assert [warning.filename for warning in caught] == [__file__]
    images = pictures(112, 112)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        assert [len(layout) for layout in tokenizer(images).layouts] == [4, 4]
        PatchTokenizer(thresholds=[math.inf, math.inf])
        PatchTokenizer(thresholds=[36, 36], importance_method="upsample_mse")
        other = PatchTokenizer(thresholds=[36, 36], patch_selection_method="v2")
        maps = other.compute_importance_maps(images)
        other(images)
    with pytest.warns(UserWarning, match=match) as caught:
        other.construct_masks(maps, "v1")
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match="3 at 28 px .highest importance there: 2"):
        PatchTokenizer(bins=4)


@pytest.mark.parametrize("method", ["v1", "v2", "budget", "joint"])
@pytest.mark.parametrize("importance_method", sorted(IMPORTANCE_METHODS))
def test_pixels_and_maps_that_require_gradients(method, importance_method):
    images = pictures(112, 140).float()
    leaf = images.clone().requires_grad_()
    tokenizer = PatchTokenizer(patch_selection_method=method, alpha=0.5, importance_method=importance_method)
    expected, found = tokenizer(images), tokenizer(leaf)
    assert_same_maps(found.masks, expected.masks)
    for one, other, selected in zip(found.layouts, expected.layouts, tokenizer.select_layouts(leaf), strict=True):
        assert torch.equal(one.patches, other.patches) and torch.equal(one.patches, selected.patches)
    found.patches.sum().backward()
    assert leaf.grad.abs().min() > 0, "what is packed keeps its gradient"
    # a caller's own maps
    maps = {side: m.requires_grad_() for side, m in tokenizer.compute_importance_maps(images).items()}
    masks, _, _ = tokenizer.construct_masks(maps)
    assert_same_maps(masks, expected.masks)
    assert not any(mask.requires_grad for mask in masks.values())
    for one, other in zip(lay_out(maps, tokenizer._rule(maps)), expected.layouts, strict=True):
        assert torch.equal(one.patches, other.patches)


def test_layouts_of_masks():
    masks = PatchTokenizer()(pictures(112, 112)).masks
    for i, layout in enumerate(PatchTokenizer.layouts_of(masks)):
        assert torch.equal(layout.patches, PatchLayout.from_masks({k: m[i] for k, m in masks.items()}).patches)


@pytest.mark.cuda
@pytest.mark.parametrize("method", sorted(IMPORTANCE_METHODS))
def test_cuda_gives_the_same_patches(method):
    images = pictures(130, 118, batch=3)
    tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=0.4, importance_method=method)
    here, there = tokenizer(images), tokenizer(images.cuda())
    assert there.patches.is_cuda
    assert torch.equal(there.patches.cpu(), here.patches)
    assert torch.equal(there.output_mask, here.output_mask) and torch.equal(there.seqlens, here.seqlens)
