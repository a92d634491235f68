"""The way of an image processor's images on a GPU: the same output as the CPU's, and how often the host waits."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import Qwen2VLImageProcessor
from transformers.image_utils import SizeDict

from apt_code import patch_packing
from apt_code.device import selection
from apt_code.patch_packing import RowPacker
from benchmarks.gpu_preprocessing import waits
from tests.apt_code.device_traffic import Traffic
from transformers_apt.models import pixels, selector
from transformers_apt.models.selector import PatchSelector
from transformers_apt.models.settings import DEFAULTS

SIZE = {"shortest_edge": 28**2, "longest_edge": 28**2 * 4096}
V1 = {"patch_selection_method": "v1", "importance_method": "upsample_mse"}
SETTINGS = [
    V1,
    {**V1, "drop_tolerance": 2},
    {"patch_selection_method": "v2", "alpha": 0.7, "drop_tolerance": 2},
    {"patch_selection_method": "budget", "alpha": 0.3},
    {"patch_selection_method": "budget", "alpha": 0.6, "drop_tolerance": 2},
    {"patch_selection_method": "joint", "alpha": 0.3, "importance_method": "upsample_l4", "predict_tolerance": 4},
    {"patch_selection_method": "fit", "alpha": 0.4, "drop_tolerance": 2, "predict_tolerance": 4},
    {"patch_selection_method": "fit", "alpha": 0.3, "drop_tolerance": 2},
]
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


@pytest.fixture(scope="module")
def images():
    """Of whole merge cells, so that nothing is resized, which a GPU rounds in its own way; three of one shape."""
    photo = Image.fromarray(data.astronaut())
    half_plain = photo.crop((0, 0, 448, 224))
    half_plain.paste((250, 240, 230), (0, 0, 224, 224))
    return [
        half_plain,
        photo.crop((200, 100, 424, 408)),
        half_plain.rotate(180),
        half_plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        photo.crop((0, 0, 28, 56)),
    ]


def call(images, settings, **options):
    """The output, and what became of each image."""
    image_processor = Qwen2VLImageProcessor(size=SIZE)
    return image_processor(images, return_tensors="pt", **settings, **options), image_processor.last_budget_info


def assert_same(found, expected, **tolerances):
    (output, infos), (wanted, its_infos) = found, expected
    assert output.keys() == wanted.keys() and infos == its_infos
    for key, value in wanted.items():
        if tolerances and key in ("pixel_values", "image_patch_parts"):
            torch.testing.assert_close(output[key].cpu(), value, **tolerances)
        else:
            assert torch.equal(output[key].cpu(), value), key


@every_setting
@pytest.mark.parametrize("floating", [False, True])
def test_the_way_of_a_gpu_taken_by_the_cpu(monkeypatch, images, settings, floating):
    images = [np.asarray(image, np.float32) for image in images] if floating else images
    expected = call(images, settings, patch_parts=True)
    for module in (selection, patch_packing, selector):
        monkeypatch.setattr(module, "on_device", lambda image: True)
    assert_same(call(images, settings, patch_parts=True), expected)


@pytest.mark.parametrize("settings", SETTINGS[:6], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_call_waits_once_whatever_its_images(settings, dtype):
    """From resized images, which are the device's already, to rows; of whole 56-px cells, as the copy brings zeros."""
    shapes = [(56, 112), (112, 56), (56, 112), (56, 56), (1120, 1120), (56, 112)]
    images = [torch.empty(3, *shape, dtype=dtype, device="meta") for shape in shapes]
    pack = RowPacker(14, 2, lambda pixels: pixels)
    select = PatchSelector({**DEFAULTS, **settings}, 14, 2, 1.0, pack, size=None, group=True)
    with Traffic() as traffic:
        found = select(images, [True] * len(images), lambda images, size: images)
    assert len(traffic.to_host) == 1 and len(traffic.to_device) == 1
    assert found.rows.is_meta and len(found.rows) == sum(map(len, found.layouts))


def test_the_ranges_of_a_call_are_asked_for_at_once():
    images = [torch.empty(3, 28, 28, dtype=dtype, device="meta") for dtype in (torch.float32, torch.int16) * 2]
    with Traffic() as traffic:
        assert pixels.ranges_of([*images, images[0].byte()], 255.0) == [(0.0, 0.0)] * 4 + [(0.0, 255.0)]
    assert len(traffic.to_host) == 1


@pytest.mark.cuda
@pytest.mark.parametrize("settings", SETTINGS[:6], ids=str)
@pytest.mark.parametrize("floating", [False, True])
def test_a_gpu_gives_the_same_output(images, settings, floating):
    given = [np.asarray(image, np.float32) for image in images] if floating else images
    found, expected = (call(given, settings, patch_parts=True, **device) for device in ({"device": "cuda"}, {}))
    assert found[0]["pixel_values"].is_cuda
    assert_same(found, expected, rtol=1e-5, atol=1e-5)


def cropped(images, size):
    """What `fit` asks for, by a resize that rounds on no device."""
    side = 28 * math.isqrt(size.longest_edge // 28**2) or 28
    return [image[:, : min(image.shape[1], side), : min(image.shape[2], side)].contiguous() for image in images]


@pytest.mark.cuda
@pytest.mark.parametrize("settings", SETTINGS[6:], ids=str)
def test_fit_on_a_gpu_finds_the_same(images, settings):
    size, pack = SizeDict(shortest_edge=28**2, longest_edge=28**2 * 4096), RowPacker(14, 2, lambda pixels: pixels)
    select = PatchSelector({**DEFAULTS, **settings}, 14, 2, 1.0, pack, size, group=True)
    here = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]
    found, expected = (
        select([image.to(device) for image in here], [True] * len(here), cropped) for device in ("cuda", "cpu")
    )
    assert any(info["max_pixels"] < 448 * 224 for info in expected.infos), "nothing was made smaller"
    assert found.infos == expected.infos and torch.equal(found.rows.cpu(), expected.rows)
    assert [one.patches.tolist() for one in found.layouts] == [one.patches.tolist() for one in expected.layouts]


@pytest.mark.cuda
@every_setting
@pytest.mark.parametrize("floating", [False, True])
def test_a_gpu_is_waited_for_once_more_than_by_upstream(monkeypatch, images, settings, floating):
    tries = []
    choose = PatchSelector.choose
    monkeypatch.setattr(PatchSelector, "choose", lambda *args: tries.append(1) or choose(*args))
    many = [np.asarray(image, np.float32) if floating else image for image in images for _ in range(2)]
    image_processor = Qwen2VLImageProcessor(size=SIZE)
    counts = []
    for one in ({"patch_selection_method": "off"}, settings):
        for _ in range(2):  # at the first time kernels are compiled, and what stays on the device is brought there
            tries.clear()
            counted = waits(lambda one=one: image_processor(many, return_tensors="pt", device="cuda", **one))
        counts.append(counted)
    upstream, ours = counts
    assert upstream.total() >= len(many), "the measure is blind: each image is copied to the device"
    assert len(tries) == 1 or settings["patch_selection_method"] == "fit"  # which waits for each try
    assert ours.total() - upstream.total() <= len(tries) + floating, ours  # and for the ranges of floats
