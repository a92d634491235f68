"""Maps of loss that only have to tell what `v1` asks: the same layouts, with less work."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from apt_code import PatchTokenizer
from apt_code.importance import IMPORTANCE_METHODS
from apt_code.importance.common import PAD_VALUE
from apt_code.selection import rule_v1
from apt_code.selection.tiling import lay_out
from tests.apt_code.references import picture

STOPPING = [name for name, method in IMPORTANCE_METHODS.items() if method.stops]


def rough(height: int, width: int, channels: int, seed: int) -> torch.Tensor:
    """`(2, c, H, W)`: noise of another strength in each region and channel, and none in some."""
    random = np.random.default_rng(seed)
    strength = np.ones((2, channels, height, width))
    for side, strengths in ((7, [0, 2, 6, 12]), (28, [0.3, 1, 8]), (112, [0, 0.1, 1, 1])):
        chosen = random.choice(strengths, (2, channels, -(-height // side), -(-width // side)))
        strength *= chosen.repeat(side, 2).repeat(side, 3)[..., :height, :width]
    noise = (random.random(strength.shape) - 0.5) * strength
    return torch.from_numpy((128 + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("method", STOPPING)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    channels=st.sampled_from([1, 3]),
    patch_size=st.sampled_from([5, 14]),
    num_scales=st.integers(1, 4),
    thresholds=st.lists(st.sampled_from([-1e300, -1.0, 0.0, 1e-3, 2.0, 16.0, 16.0, 200.0, 1e300, np.inf]), min_size=3),
    seed=st.integers(0, 1000),
)
@example(112, 112, 3, 14, 4, [0.0, 0.0, 0.0], 0)  # a flat cell's loss, 0, is not below it
@example(120, 112, 3, 14, 4, [16.0, np.inf, 16.0], 1)
def test_layouts_are_those_of_exact_maps(method, height, width, channels, patch_size, num_scales, thresholds, seed):
    images, thresholds = rough(height, width, channels, seed), thresholds[: num_scales - 1]
    compute = IMPORTANCE_METHODS[method].compute
    exact = compute(images, patch_size, num_scales)
    stopped = compute(images, patch_size, num_scales, thresholds=thresholds)
    assert list(stopped) == list(exact)
    for found, wanted in zip(
        lay_out(stopped, rule_v1(stopped, thresholds)), lay_out(exact, rule_v1(exact, thresholds)), strict=True
    ):
        assert torch.equal(found.patches, wanted.patches)
    for i, side in enumerate(sorted(exact)[1:]):
        known, asked = stopped[side], stopped[side] > -np.inf
        below = exact[side] < thresholds[i]
        assert torch.equal(known[asked & below], exact[side][asked & below]), "exact where it is below"
        assert (known[asked & ~below] >= min(thresholds[i], PAD_VALUE)).all()
        assert (known <= exact[side]).all()


def test_the_noise_is_worth_it():
    """Otherwise the comparison above could be of layouts in which every cell stays whole, or none."""
    layouts = PatchTokenizer(4, 14, importance_method="upsample_mse", thresholds=[16, 16, 16]).select_layouts(
        torch.cat([rough(112, 112, 3, seed) for seed in range(20)])
    )
    assert {size for layout in layouts for size in layout.patches_by_size} == {1, 2, 4, 8}


@pytest.mark.parametrize("method", STOPPING)
def test_textured_cells_are_not_read_to_their_end(method):
    """Work, not seconds: a loss is added up while a cell is read, so what it came to says how much was read."""
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    compute = IMPORTANCE_METHODS[method].compute
    exact, stopped = compute(images, 14, 3), compute(images, 14, 3, thresholds=[50, 50])
    for side in (28, 56):
        read = (stopped[side] / exact[side]) ** (2 if method == "upsample_l4" else 1)
        assert (read < 2 / (3 * 14)).all(), "no more than two coarse rows of the first channel"


@pytest.mark.parametrize("method", STOPPING)
def test_nothing_is_read_inside_a_cell_that_stays_whole(method):
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[..., :56, :] = 7
    stopped = IMPORTANCE_METHODS[method].compute(images, 14, 3, thresholds=[16, 16])
    assert stopped[56][0, 0].tolist() == [0, 0]
    assert (stopped[28][0, :2] == -np.inf).all() and (stopped[28][0, 2:] >= 0).all()


@pytest.mark.parametrize("method", STOPPING)
def test_only_v1_asks_for_less(monkeypatch, method):
    """`budget` and `joint` compare losses with each other, `v2` takes their mean, and a picture shows them all."""
    asked = []
    row = IMPORTANCE_METHODS[method]

    def compute(*args, thresholds=None, **options):
        asked.append(thresholds)
        return row.compute(*args, thresholds=thresholds, **options)

    changed = type(row)(**{**vars(row), "compute": compute})
    monkeypatch.setitem(IMPORTANCE_METHODS, method, changed)  # type: ignore[arg-type]
    images = picture(56, 84)[None]
    for rule in ("v1", "v2", "budget", "joint"):
        tokenizer = PatchTokenizer(patch_selection_method=rule, alpha=0.5, importance_method=method)
        tokenizer.select_layouts(images)
        tokenizer.compute_importance_maps(images)
    assert asked == [list(row.default_thresholds), None] + [None] * 6
