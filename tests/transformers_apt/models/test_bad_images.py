"""Images nobody would want: each is worked on as documented, or refused as upstream refuses it, never guessed at."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image
from skimage import data
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from apt_code import PatchLayout

OFF = {"patch_selection_method": "off"}
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
ALL = {"patch_selection_method": "budget", "alpha": 1.0}
BACKENDS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]
both_backends = pytest.mark.parametrize("backend", BACKENDS, ids=["torchvision", "pil"])
PHOTO = Image.fromarray(data.astronaut()).resize((224, 168))
PIXELS = np.asarray(PHOTO)
pytestmark = pytest.mark.filterwarnings("ignore")


def outcome(backend, make, **settings):
    """The output, or the exception; `make` gives a fresh image, since reading one may spoil it."""
    try:
        return backend()(images=make(), return_tensors="pt", **settings)
    except Exception as error:
        return error


def assert_works_or_is_refused_alike(backend, make):
    """Where upstream works, adaptive patches tile the image; where it fails, they fail in its words."""
    upstream = outcome(backend, make, **OFF)
    for settings in (
        BUDGET,
        ALL,
        {},
        {"patch_selection_method": "v2", "alpha": 0.5},
        {**BUDGET, "importance_method": "upsample_mse"},
    ):
        found = outcome(backend, make, **settings)
        if isinstance(upstream, Exception):
            assert type(found) is type(upstream) and str(found) == str(upstream), (found, upstream)
            continue
        assert not isinstance(found, Exception), found
        (layout,) = PatchLayout.unpack(found["image_patch_layout"], found["image_grid_thw"])
        assert torch.equal(found["image_grid_thw"], upstream["image_grid_thw"])
        assert len(found["pixel_values"]) == layout.num_patches <= len(upstream["pixel_values"])
        if settings is ALL:
            assert torch.equal(found["pixel_values"], upstream["pixel_values"])


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opened(content):
    return lambda: Image.open(io.BytesIO(content))


def channels_first(pixels):
    return torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def read_only(pixels):
    pixels = pixels.copy()
    pixels.setflags(write=False)
    return pixels


JPEG_BYTES = encoded(PHOTO, "JPEG")
KINDS = {
    "one pixel": lambda: Image.new("RGB", (1, 1)),
    "1 by 20,000": lambda: Image.new("RGB", (20_000, 1)),
    "as narrow as upstream allows": lambda: Image.new("RGB", (20_000, 101)),
    "CMYK": lambda: PHOTO.convert("CMYK"),
    "YCbCr": lambda: PHOTO.convert("YCbCr"),
    "32-bit integers": lambda: PHOTO.convert("I"),
    "32-bit floats": lambda: PHOTO.convert("F"),
    "16-bit PNG": opened(encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG")),
    "16-bit array": lambda: PIXELS.astype(np.uint16) * 257,
    "negative integers": lambda: -PIXELS.astype(np.int32),
    "true and false": lambda: PIXELS > 100,
    "animated": opened(encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)] * 3)),
    "truncated": opened(JPEG_BYTES[: len(JPEG_BYTES) // 2]),
    "wrong extension": opened(encoded(PHOTO, "WEBP")),
    "0 to 1, to be rescaled": lambda: channels_first(PIXELS) / 255,
    "below zero": lambda: -channels_first(PIXELS).float(),
    "huge floats": lambda: channels_first(PIXELS) * 1e30,
    "half precision": lambda: channels_first(PIXELS).half(),
    "channels last": lambda: torch.tensor(PIXELS),
    "every second row and column": lambda: channels_first(PIXELS)[:, ::2, ::2],
    "mirrored view": lambda: PIXELS[:, ::-1],
    "read-only": lambda: read_only(PIXELS),
    "four channels": lambda: np.zeros((56, 56, 4), np.uint8),
    "two channels": lambda: np.zeros((56, 56, 2), np.uint8),
    "one dimension": lambda: np.zeros(56, np.uint8),
    "no image": lambda: object(),
    "nothing": lambda: None,
    "bytes": lambda: b"GIF89a",
}


@both_backends
@pytest.mark.parametrize("kind", KINDS)
def test_it_works_or_is_refused_as_upstream_does(backend, kind):
    assert_works_or_is_refused_alike(backend, KINDS[kind])


@both_backends
@pytest.mark.parametrize(
    ("content", "name"), [(b"", "empty.png"), (b"no image", "text.jpg"), (JPEG_BYTES[:300], "cut.jpg")]
)
def test_files_that_hold_no_image(backend, content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert isinstance(outcome(backend, lambda: str(path), **OFF), Exception)
    assert_works_or_is_refused_alike(backend, lambda: str(path))


@both_backends
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(backend, tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        backend()(images=Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(body))), **BUDGET)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@both_backends
def test_pixels_that_are_no_numbers_are_refused(backend, bad):
    image = channels_first(PIXELS).float()
    image[0, 5, 5] = bad
    with pytest.raises(ValueError) as refusal:
        backend()(images=image, **BUDGET)
    if backend is Qwen2VLImageProcessor:  # upstream's PIL backend refuses them itself
        for words in ("NaN or infinite pixels", "expected finite values", "nan_to_num", "'off'"):
            assert words in str(refusal.value)


@both_backends
@pytest.mark.parametrize("options", [{}, {"do_resize": False}], ids=str)
def test_no_image_and_no_pixel(backend, options):
    with pytest.raises(ValueError, match=r"images=\[\]: expected at least one image; leave the argument out"):
        backend()(images=[], **options)
    with pytest.raises(ValueError, match=r"image 1 has the shape \(3, 0, 28\): expected at least one pixel"):
        backend()(images=[PIXELS[:28, :28], np.zeros((0, 28, 3), np.uint8)], **options)


@pytest.mark.parametrize("kind", ["16-bit array", "negative integers"])
def test_integers_that_are_no_grey_levels_keep_every_patch_and_say_so(kind, caplog):
    """Chosen on as grey levels, 16-bit pixels all looked alike, and 12 of 192 patches were kept without a word."""
    logger = transformers_logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")
    type(logger).warning_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger=logger.name):
        found = Qwen2VLImageProcessor()(images=KINDS[kind](), **BUDGET)
    assert len(found["pixel_values"]) == 192
    assert "patches cannot be chosen on it, and all are kept. Pass uint8 images" in caplog.text


def test_108_megapixels():
    """12,000 by 9,000: resized to upstream's limit, and tiled within the budget."""
    image_processor = Qwen2VLImageProcessor()
    image = Image.new("RGB", (12_000, 9_000), (90, 90, 90))
    found = image_processor(images=image, return_tensors="pt", **BUDGET)
    (layout,) = PatchLayout.unpack(found["image_patch_layout"], found["image_grid_thw"])
    h, w = layout.grid
    assert h * w * 14**2 <= image_processor.size["longest_edge"] < 12_000 * 9_000
    assert layout.num_patches <= round(0.3 * h * w)


@st.composite
def arrays(draw):
    """Any size, number of channels, type, order of axes and memory layout."""
    height, width = draw(
        st.tuples(st.integers(1, 120), st.integers(1, 120)) | st.sampled_from([(1, 300), (28, 28), (56, 5)])
    )
    channels = draw(st.sampled_from([3, 3, 3, 1, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = rng.integers(0, draw(st.sampled_from([2, 20, 256])), (height, width, channels), dtype=np.uint8)
    kind = draw(
        st.sampled_from(["uint8", "int32", "int64", "float32", "float64", "float16", "bool", "uint16", "0 to 1"])
    )
    pixels = pixels / 255 if kind == "0 to 1" else pixels.astype(kind)
    pixels = draw(
        st.sampled_from(
            [
                lambda x: x,
                lambda x: x[::2],
                lambda x: x[:, ::-1],
                lambda x: np.asfortranarray(x),
                lambda x: x.transpose(2, 0, 1),
                lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)),
                read_only,
            ]
        )
    )(pixels)
    return torch.tensor(pixels.copy()) if draw(st.booleans()) and kind != "uint16" else pixels


@pytest.mark.generated
@given(pixels=arrays(), backend=st.sampled_from(BACKENDS))
def test_any_array(pixels, backend):
    # one channel (or what can be read as one): older upstreams fail to normalise it
    assume(1 not in pixels.shape or Version(transformers_version) >= Version("5.23"))
    assert_works_or_is_refused_alike(backend, lambda: pixels)


FILES = [encoded(PHOTO.resize((60, 44)), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]


@pytest.mark.generated
@given(
    content=st.sampled_from(FILES),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    length=st.floats(0, 1),
    backend=st.sampled_from(BACKENDS),
)
@example(content=FILES[0], damage=[], length=0.0, backend=Qwen2VLImageProcessor)
def test_any_damaged_file(content, damage, length, backend):
    damaged = bytearray(content)
    for place, value in damage:
        damaged[int(place * len(damaged))] = value
    damaged = bytes(damaged[: round(length * len(damaged))] if length < 0.5 else damaged)
    try:
        picture = Image.open(io.BytesIO(damaged))
    except Exception:
        return  # Pillow does not call it an image
    if picture.width * picture.height > 10**6:
        return  # a damaged header may claim any size: that is the bomb's test
    assert_works_or_is_refused_alike(backend, opened(damaged))


def float_pixels(value, backend):
    pixels = PIXELS.astype(np.float32)
    pixels[40, 50, 1] = value
    return torch.from_numpy(pixels) if backend is Qwen2VLImageProcessor else pixels


NO_PIXELS = {
    "NaN": lambda backend: float_pixels(np.nan, backend),
    "infinite": lambda backend: float_pixels(np.inf, backend),
    "meta": lambda backend: torch.empty(3, 168, 224, device="meta"),
    "long double": lambda backend: PIXELS.astype(np.longdouble),
    "big-endian": lambda backend: PIXELS.astype(">u2"),
    "8-bit float": lambda backend: torch.ones(3, 168, 224).to(torch.float8_e4m3fn),
}


@both_backends
@pytest.mark.parametrize("kind", NO_PIXELS)
def test_what_cannot_be_chosen_on_is_stock_where_nobody_asked(backend, kind, upstream):
    """A program that never asked works, or fails, as on stock; one that asked is told what is wrong."""

    def call(**settings):
        return outcome(backend, lambda: NO_PIXELS[kind](backend), input_data_format=None, **settings)

    with upstream():
        expected = call()
    found = call()
    assert type(found) is type(expected)
    if isinstance(expected, Exception):
        assert str(found) == str(expected)
        return
    assert set(found) == set(expected) == {"pixel_values", "image_grid_thw"}
    pixels, others = found["pixel_values"], expected["pixel_values"]
    assert pixels.shape == others.shape and pixels.dtype == others.dtype
    assert pixels.is_meta or torch.equal(pixels.nan_to_num(), others.nan_to_num())
    refusal = call(**BUDGET)
    assert isinstance(refusal, ValueError) and "adaptive patches: expected" in str(refusal) and "'off'" in str(refusal)
