"""What `v1` asks of a map of loss, found out with less work than the map: the same layouts."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from apt_code import PatchTokenizer
from apt_code.dropping import drop_repeats
from apt_code.importance import IMPORTANCE_METHODS, losses
from apt_code.importance.common import PAD_VALUE
from apt_code.importance.losses import compiled_losses, kept_whole
from apt_code.importance.upsampling_kernel import fits
from apt_code.selection import rule_v1
from apt_code.selection.tiling import canonical_patches, lay_out
from tests.apt_code.references import picture

LOSSES = [name for name, method in IMPORTANCE_METHODS.items() if method.loss]


def rough(height: int, width: int, channels: int, seed: int) -> torch.Tensor:
    """`(2, c, H, W)`: noise of another strength in each region and channel, and none in some."""
    random = np.random.default_rng(seed)
    strength = np.ones((2, channels, height, width))
    for side, strengths in ((7, [0, 2, 6, 12]), (28, [0.3, 1, 8]), (112, [0, 0.1, 1, 1])):
        chosen = random.choice(strengths, (2, channels, -(-height // side), -(-width // side)))
        strength *= chosen.repeat(side, 2).repeat(side, 3)[..., :height, :width]
    noise = (random.random(strength.shape) - 0.5) * strength
    return torch.from_numpy((128 + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("method", LOSSES)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    channels=st.sampled_from([1, 3]),
    patch_size=st.sampled_from([5, 14]),
    num_scales=st.integers(2, 4),
    thresholds=st.lists(st.sampled_from([-1e300, -1.0, 0.0, 1e-3, 2.0, 16.0, 16.0, 200.0, 1e300, np.inf]), min_size=3),
    seed=st.integers(0, 1000),
)
@example(112, 112, 3, 14, 4, [0.0, 0.0, 0.0], 0)  # a flat cell's loss, 0, is not below it
@example(120, 112, 3, 14, 4, [16.0, np.inf, 16.0], 1)
def test_layouts_are_those_of_the_maps(method, height, width, channels, patch_size, num_scales, thresholds, seed):
    images, thresholds = rough(height, width, channels, seed), thresholds[: num_scales - 1]
    row = IMPORTANCE_METHODS[method]
    maps = row.compute(images, patch_size, num_scales)
    wanted = lay_out(maps, rule_v1(maps, thresholds))
    whole = kept_whole(images.numpy(), patch_size, thresholds, row.loss)
    size = 2 ** (num_scales - 1)
    if not fits(channels, patch_size * size, size, row.loss.fourth):
        assert whole is None
        return
    parts = canonical_patches(whole, 2, wanted[0].grid)
    assert [part.tolist() for part in parts] == [layout.patches.tolist() for layout in wanted]
    # what is said of a cell is right, unless it lies within a larger one that stays whole
    inside = np.zeros_like(whole[-1])
    for scale in range(num_scales - 1, 0, -1):
        found, exact = whole[scale - 1], maps[patch_size * 2**scale].numpy()
        inside = (
            inside.repeat(2, 1).repeat(2, 2)[:, : found.shape[1], : found.shape[2]]
            if scale < num_scales - 1
            else inside
        )
        below = exact < np.float32(np.clip(thresholds[scale - 1], -1, PAD_VALUE))
        assert (found == below)[~inside].all()
        inside = inside | found


@pytest.mark.parametrize("method", LOSSES)
@given(
    height=st.integers(2, 10),
    width=st.integers(2, 10),
    tolerances=st.sampled_from([(None, None), (2.0, None), (None, 4.0), (2.0, 4.0)]),
    threshold=st.sampled_from([0.0, 16.0, 200.0]),
    seed=st.integers(0, 1000),
)
def test_the_one_pass_is_the_steps_one_by_one(method, height, width, tolerances, threshold, seed):
    images = rough(14 * height, 14 * width, 3, seed)
    drop, predict = tolerances if height % 2 == width % 2 == 0 else (None, None)
    tokenizer = PatchTokenizer(
        importance_method=method, thresholds=[threshold, 16.0], drop_tolerance=drop, predict_tolerance=predict
    )
    maps = tokenizer.compute_importance_maps(images)
    wanted = lay_out(maps, rule_v1(maps, tokenizer.thresholds))
    if drop is not None or predict is not None:
        wanted = drop_repeats(images, wanted, 14, drop, predict)
    found = tokenizer.select_layouts(images)
    assert [layout.patches.tolist() for layout in found] == [layout.patches.tolist() for layout in wanted]
    assert [layout.grid for layout in found] == [layout.grid for layout in wanted]


def test_the_noise_is_worth_it():
    """Otherwise the comparison above could be of layouts in which every cell stays whole, or none."""
    layouts = PatchTokenizer(4, 14, importance_method="upsample_mse", thresholds=[16, 16, 16]).select_layouts(
        torch.cat([rough(112, 112, 3, seed) for seed in range(20)])
    )
    assert {size for layout in layouts for size in layout.patches_by_size} == {1, 2, 4, 8}


NOISE = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", LOSSES)
def test_textured_cells_are_not_read_to_their_end(method):
    """Work, not seconds: a loss is added up while a cell is read, so what it came to says how much was read."""
    row = IMPORTANCE_METHODS[method]
    exact = row.compute(NOISE, 14, 3)
    for size in (2, 4):
        stopped = compiled_losses(NOISE.numpy(), 14, size, row.loss, enough=50.0)
        read = (stopped / exact[14 * size].numpy()) ** (2 if method == "upsample_l4" else 1)
        assert (read < 2 / (3 * 14)).all(), "no more than two coarse rows of the first channel"


@pytest.mark.parametrize("method", LOSSES)
def test_nothing_is_read_inside_a_cell_that_stays_whole(method):
    images = NOISE.clone()
    images[..., :56, :] = 7
    pixels, loss = images.numpy(), IMPORTANCE_METHODS[method].loss
    coarser = compiled_losses(pixels, 14, 4, loss, enough=16.0)
    assert coarser[0, 0].tolist() == [0, 0]
    finer = compiled_losses(pixels, 14, 2, loss, enough=16.0, coarser=coarser, whole_below=16.0)
    assert (finer[0, :2] == -np.inf).all() and (finer[0, 2:] >= 0).all()


@pytest.mark.parametrize("method", LOSSES)
def test_only_v1_asks_for_less(monkeypatch, method):
    """`budget` and `joint` compare losses with each other, `v2` takes their mean, and a picture shows them all."""
    asked = []
    known = losses.compiled_losses

    def compiled(pixels, patch_size, size, loss, pad_value, enough=np.inf, *rest):
        asked.append(enough)
        return known(pixels, patch_size, size, loss, pad_value, enough, *rest)

    monkeypatch.setattr(losses, "compiled_losses", compiled)
    images = picture(56, 84)[None]
    for rule in ("v1", "v2", "budget", "joint"):
        tokenizer = PatchTokenizer(patch_selection_method=rule, alpha=0.5, importance_method=method)
        tokenizer.select_layouts(images)
        tokenizer.compute_importance_maps(images)
    assert asked == [*IMPORTANCE_METHODS[method].default_thresholds, np.inf, np.inf] + [np.inf] * 12
