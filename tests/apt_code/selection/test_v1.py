"""Rule `v1` against a slow reference."""

from hypothesis import given
from hypothesis import strategies as st

from apt_code.selection.v1 import select_patches_by_threshold
from tests.apt_code import references
from tests.apt_code.references import random_maps
from tests.apt_code.selection.material import assert_masks_tile, images_of, num_patches, pyramids, tilings_of


@given(maps=pyramids, data=st.data())
def test_v1_matches_the_reference(maps, data):
    thresholds = data.draw(st.lists(st.sampled_from([-1.0, 0.5, 1.0, 2.0, 4.0, 9.0, 2e6]), min_size=3, max_size=3))
    thresholds = thresholds[: len(maps) - 1]
    masks = select_patches_by_threshold(maps, thresholds)
    assert_masks_tile(masks, maps)
    assert tilings_of(masks) == [references.select_v1(image, thresholds) for image in images_of(maps)]


def test_v1_thresholds_are_strict_and_finest_first():
    maps = random_maps(56, 56, 14, 3, batch=1, levels=1, seed=0)
    maps[28][:] = 3.0
    maps[56][:] = 2.0
    assert tilings_of(select_patches_by_threshold(maps, [3, 2.01]))[0] == {(0, 0, 4)}
    assert num_patches(select_patches_by_threshold(maps, [3.01, 2])) == [4]
    assert num_patches(select_patches_by_threshold(maps, (3, 2))) == [16]
