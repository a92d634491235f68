"""The compiled kernels give the bits of the plain code, and are not needed."""

import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from apt_code import InvalidLayoutError, PatchLayout, PatchTokenizer, entropy_utils, patch_packing, patch_selection
from apt_code.compilation import can_compile
from apt_code.entropy_utils import compute_patch_entropy_batched, compute_patch_upsample_mse_batched
from apt_code.patch_packing import Affine, RowPacker

COMPILED_MAPS = (compute_patch_entropy_batched, compute_patch_upsample_mse_batched)


def plain(compute, *args, **kwargs):
    """The same map without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_utils, "can_compile", lambda images: False)
        return compute(*args, **kwargs)


def assert_equal(compute, images, **options):
    compiled, expected = compute(images, **options), plain(compute, images, **options)
    assert compiled.keys() == expected.keys()
    for side in expected:
        assert torch.equal(compiled[side], expected[side]), (compute.__name__, side, images.shape, options)


@pytest.mark.parametrize("compute", COMPILED_MAPS)
@pytest.mark.parametrize("name", ["astronaut", "page", "moon"])
def test_on_real_photos(compute, name):
    pixels = torch.from_numpy(getattr(data, name)().copy())
    image = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    assert_equal(compute, image[None], patch_size=14, num_scales=3)


@given(
    shape=st.tuples(st.integers(1, 2), st.sampled_from([1, 3]), st.integers(1, 90), st.integers(1, 90)),
    patch_size=st.sampled_from([1, 2, 5, 14, 16]),
    num_scales=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 1000),
)
def test_on_any_size(shape, patch_size, num_scales, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, levels, shape, dtype=torch.uint8, generator=generator) * (255 // max(levels - 1, 1))
    for compute in COMPILED_MAPS:
        assert_equal(compute, images, patch_size=patch_size, num_scales=num_scales)


def test_other_numbers_of_bins():
    images = torch.randint(0, 256, (1, 3, 56, 84), dtype=torch.uint8)
    for bins in (1, 7, 512, 1684, 1685, 4096):
        assert_equal(compute_patch_entropy_batched, images, patch_size=14, num_scales=3, bins=bins)


def test_only_bytes_in_host_memory_are_compiled():
    images = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    assert can_compile(images)
    assert not can_compile(images.float())
    assert not can_compile(images.to("meta"))


def test_without_numba_everything_works_and_one_debug_line_says_so():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["numba"] = None
        import torch
        from loguru import logger
        from apt_code import PatchTokenizer
        logger.remove()
        logger.add(sys.stdout, level="DEBUG", format="{message}")
        logger.enable("apt_code")
        images = torch.arange(3 * 56 * 56, dtype=torch.int64).reshape(1, 3, 56, 56).remainder(256).to(torch.uint8)
        for _ in range(3):
            print(len(PatchTokenizer(patch_selection_method="budget", alpha=0.5)(images).patches), "patches")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("7 patches") == 3
    assert done.stdout.count("pip install numba") == 1


@pytest.mark.parametrize("frames", [1, 2])
def test_packing_by_table_is_packing_then_normalising(monkeypatch, frames):
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None, :, :392, :420]
    images = torch.cat([image, image.flip(-1)])
    layouts = PatchTokenizer(patch_selection_method="budget", alpha=0.4)(images).layouts
    assert set(layouts[0].patches_by_size) == {1, 2, 4}
    mean, std = torch.tensor([0.48, 0.45, 0.41]).view(-1, 1, 1), torch.tensor([0.27, 0.26, 0.28]).view(-1, 1, 1)
    normalised = []

    def normalise(pixels):
        normalised.append(pixels.numel())
        return (pixels * (1 / 255) - mean) / std

    packer = RowPacker(14, frames, normalise)
    rows = packer(images, layouts)
    packer(images, layouts)
    # work, not seconds: the values that bytes and their averages can have, once, not the pixels that are kept
    assert normalised == [3 * sum(255 * size**2 + 1 for size in (1, 2, 4))]
    monkeypatch.setattr(patch_packing, "can_compile", lambda images: False)
    assert torch.equal(torch.cat(rows), torch.cat(packer(images, layouts)))
    assert normalised[1] == sum(map(len, layouts)) * 3 * 14 * 14


@pytest.mark.parametrize("frames", [1, 2])
def test_packing_by_arithmetic_is_packing_by_table(frames):
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None, :, :392, :420]
    for side, layout in ((14, PatchTokenizer(patch_selection_method="budget", alpha=0.4)), (7, PatchTokenizer(3, 7))):
        layouts = layout.select_layouts(image)
        affine = Affine((122.8, 116.7, 104.1), (68.5, 66.6, 70.3 + frames))  # not seen by another test
        work = []

        def normalise(pixels, affine=affine, work=work):
            work.append(pixels.numel())
            return affine.of(pixels)

        expected = RowPacker(side, frames, normalise)(image, layouts)
        for _ in range(3):
            found = RowPacker(side, frames, normalise, affine)(image, layouts)
            assert torch.equal(torch.cat(found), torch.cat(expected))
        assert len(work) <= 2  # for the table, and to see that the affine map is what it says


def test_packing_does_not_believe_a_wrong_claim():
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None, :, :392, :420]
    layouts = [PatchLayout.uniform((28, 30))]

    def gamma(pixels):
        return (pixels / 255) ** 2.2

    (found,) = RowPacker(14, 2, gamma, Affine((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)))(image, layouts)
    (expected,) = RowPacker(14, 2, gamma)(image, layouts)
    assert torch.equal(found, expected)


def test_packing_believes_while_others_make_many_claims():
    """As other threads may, others come in between at every look-up, and make more claims than are remembered."""

    def believe(affine: Affine) -> Affine | None:
        return RowPacker(14, 1, affine.of, affine)._believed(3, 1)

    class Interrupted(Affine):
        def __hash__(self) -> int:
            for i in range(70):
                believe(Affine((float(i),) * 3, self.std))
            return super().__hash__()

    interrupted = Interrupted((1.0,) * 3, (7.0,) * 3)
    for _ in range(3):
        assert believe(interrupted) is interrupted
    assert patch_packing._holds_up_to.cache_info().currsize <= 64


def test_packing_refuses_a_layout_that_leaves_the_image():
    outside = PatchLayout((4, 4), torch.tensor([[2, 2, 4]]))
    with pytest.raises(InvalidLayoutError, match="outside its grid"):
        RowPacker(14, 2, lambda pixels: pixels)(torch.zeros(1, 3, 56, 56, dtype=torch.uint8), [outside])


def test_without_a_place_for_compiled_code_it_is_compiled_anyway():
    script = textwrap.dedent(
        """
        import numba.core.caching as caching
        caching.CacheImpl._locator_classes = []
        import torch
        from apt_code import compilation, kernels
        from apt_code.entropy_utils import compute_patch_entropy_batched
        images = torch.zeros(1, 3, 14, 14, dtype=torch.uint8)
        assert compilation.can_compile(images)
        assert float(compute_patch_entropy_batched(images, 14, 1)[14]) == 0.0
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broken_numba_is_as_good_as_none():
    script = textwrap.dedent(
        """
        import sys
        class Broken:
            def __getattr__(self, name):
                raise OSError("libLLVM cannot be loaded")
        sys.modules["numba"] = Broken()
        import torch
        from apt_code import PatchTokenizer
        print(len(PatchTokenizer()(torch.zeros(1, 3, 56, 56, dtype=torch.uint8)).patches), "patch")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1 patch", done.stderr


@given(
    size=st.tuples(st.integers(1, 230), st.integers(1, 230)),
    num_scales=st.integers(1, 4),
    method=st.sampled_from(["v1", "v2", "budget", "joint"]),
    importance_method=st.sampled_from(["entropy", "laplacian", "upsample_mse"]),
    alpha=st.sampled_from([0.0, 0.1, 0.3, 0.77, 1.0]),
    seed=st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore:alpha=")
def test_compiled_selection_lays_out_what_the_plain_code_does(
    size, num_scales, method, importance_method, alpha, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    images[:, :, : size[0] // 2] //= 64  # plain enough that many cells tie
    images[1, :, :, size[1] // 3 :] = 9
    tokenizer = PatchTokenizer(
        num_scales, 14, patch_selection_method=method, alpha=alpha, importance_method=importance_method
    )
    compiled = tokenizer.select_layouts(images)
    info = tokenizer.last_budget_info
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_selection, "can_compile", lambda values, dtype: False)
        expected = tokenizer.select_layouts(images)
    assert info == tokenizer.last_budget_info
    for found, wanted in zip(compiled, expected, strict=True):
        assert found.grid == wanted.grid
        assert torch.equal(found.patches, wanted.patches)


def test_sizes_that_are_none_are_refused_by_the_packing_kernel():
    odd = PatchLayout((4, 4), torch.tensor([[0, 0, 3]]))
    with pytest.raises(InvalidLayoutError, match="power of two"):
        RowPacker(14, 2, lambda pixels: pixels)(torch.zeros(1, 3, 56, 56, dtype=torch.uint8), [odd])
    huge = PatchLayout((32, 32), torch.tensor([[0, 0, 32]]))
    with pytest.raises(ValueError, match="a patch of size 32: expected at most 16"):
        RowPacker(1, 1, lambda pixels: pixels)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [huge])


@pytest.mark.parametrize("frames", [1, 2])
def test_packing_other_patch_sides_and_scales(monkeypatch, frames):
    images = torch.randint(0, 256, (3, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[1:, :, 32:] = images[1:, :, 32:] // 128
    for side, num_scales in ((2, 4), (4, 4), (8, 3)):
        tokenizer = PatchTokenizer(
            num_scales, side, importance_method="upsample_mse", thresholds=[9e3] * (num_scales - 1)
        )
        layouts = tokenizer.select_layouts(images)
        packer = RowPacker(side, frames, lambda pixels: pixels / 255)
        found = packer(images, layouts)
        with monkeypatch.context() as patch:
            patch.setattr(patch_packing, "can_compile", lambda images: False)
            expected = packer(images, layouts)
        assert {size for layout in layouts for size in layout.patches_by_size} >= {2 ** (num_scales - 1)}
        for rows, wanted in zip(found, expected, strict=True):
            assert torch.equal(rows, wanted)
