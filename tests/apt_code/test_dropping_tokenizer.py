"""`PatchTokenizer` that leaves cells out: selection first, then dropping, whatever the way through it."""

import pytest
import torch

from apt_code import PatchTokenizer
from apt_code.dropping import drop_repeats
from apt_code.patch_packing import pack_patches
from tests.apt_code.test_dropping import scene

GRID, P = (8, 12), 14
SETTINGS = [
    {"patch_selection_method": "v1"},
    {"patch_selection_method": "v2", "alpha": 0.5},
    {"patch_selection_method": "budget", "alpha": 0.5},
    {"patch_selection_method": "budget", "alpha": 1.0},
    {"patch_selection_method": "joint", "alpha": 0.5, "importance_method": "upsample_mse"},
]
TOLERANCES = [{"drop_tolerance": 2}, {"predict_tolerance": 4}, {"drop_tolerance": 2, "predict_tolerance": 4}]
every_rule = pytest.mark.parametrize("settings", SETTINGS, ids=str)
every_tolerance = pytest.mark.parametrize("tolerances", TOLERANCES, ids=str)


@pytest.fixture(scope="module")
def images():
    return torch.stack([torch.from_numpy(scene(GRID, P, 2, seed)) for seed in range(3)])


@every_rule
@every_tolerance
def test_every_way_drops_the_same(settings, tolerances, images):
    whole = PatchTokenizer(**settings).select_layouts(images)
    both = {"drop_tolerance": None, "predict_tolerance": None, **tolerances}
    expected = drop_repeats(images, whole, P, **both)
    dropped = [len(before) - len(after) for before, after in zip(whole, expected, strict=True)]
    assert sum(dropped) > 3
    tokenizer = PatchTokenizer(**settings, **tolerances)
    found = tokenizer(images)
    for layouts in (tokenizer.select_layouts(images), found.layouts):
        assert [layout.patches.tolist() for layout in layouts] == [layout.patches.tolist() for layout in expected]
        info = tokenizer.last_budget_info
        assert info is None if "v" in settings["patch_selection_method"] else info["dropped"] == dropped
    assert torch.equal(found.patches, pack_patches(images, expected, P))
    assert found.seqlens.tolist() == [len(layout) for layout in expected]
    assert found.output_mask.tolist() == torch.cat([layout.sizes for layout in expected]).tolist()
    for side, mask in found.masks.items():
        assert mask.sum((1, 2)).tolist() == [layout.patches_by_size.get(side // P, 0) for layout in expected]
    groups = tokenizer.construct_patch_groups(images, found.masks)
    assert sum(len(groups[f"resized_patches_{side}"]) for side in found.masks) == len(found.patches)


@every_rule
def test_without_a_tolerance_nothing_changes(settings, images):
    expected = PatchTokenizer(**settings)(images)
    for value in (None, "off"):
        tokenizer = PatchTokenizer(**settings, drop_tolerance=value, predict_tolerance=value)
        found = tokenizer(images)
        assert torch.equal(found.patches, expected.patches) and torch.equal(found.output_mask, expected.output_mask)
        assert "dropped" not in (tokenizer.last_budget_info or {})


@every_tolerance
def test_maps_alone_do_not_show_what_repeats(tolerances, images):
    tokenizer = PatchTokenizer(**tolerances)
    name, value = next(iter(tolerances.items()))
    with pytest.raises(ValueError, match=rf"construct_masks with {name}={value}: .* call the tokenizer itself"):
        tokenizer.construct_masks(tokenizer.compute_importance_maps(images))


@pytest.mark.parametrize("name", ["drop_tolerance", "predict_tolerance"])
def test_what_cannot_be_used_is_refused_at_once(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        PatchTokenizer(**{name: -1})
    with pytest.raises(ValueError, match=r"60×56 px with drop_tolerance or predict_tolerance: .* multiples of 28"):
        PatchTokenizer(**{name: 2})(torch.zeros(1, 3, 60, 56, dtype=torch.uint8))
