"""On a GPU: the image processor chooses the same patches, and towers and language models compute the same."""

import pytest
import torch
from PIL import Image
from skimage import data
from transformers import AutoProcessor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from transformers_apt.models.qwen2_5_vl.modeling_qwen2_5_vl import runs_of

pytestmark = [pytest.mark.cuda, pytest.mark.every_family]

DEVICE = "cuda"
SETTINGS = (
    {"patch_selection_method": "off"},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [16, 16]},
    {"patch_selection_method": "budget", "alpha": 0.3},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse", "drop_tolerance": 2, "predict_tolerance": 4},
)


@pytest.fixture(autouse=True)
def plain_float32():
    """A GPU's faster and coarser convolutions would hide a difference; its matrix products are exact by default."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def images():
    """Of whole merge cells in every family, so that nothing is resized, which a GPU rounds in its own way."""
    pixels = Image.fromarray(data.astronaut())
    half_plain = pixels.crop((0, 0, 448, 224))
    half_plain.paste((250, 240, 230), (0, 0, 224, 224))
    return [half_plain, pixels.crop((200, 100, 424, 548))]


def close(found, expected):
    """As a whole: weights this large make single numbers drift."""
    assert (found.cpu().double() - expected.double()).norm() <= 1e-3 * expected.double().norm()


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_image_processor_chooses_the_same_patches(folder, images, settings):
    image_processor = AutoProcessor.from_pretrained(folder).image_processor
    here, there = (
        image_processor(images, return_tensors="pt", **settings, **device) for device in ({}, {"device": DEVICE})
    )
    assert here.keys() == there.keys() and there["pixel_values"].device.type == DEVICE
    for key in here.keys() - {"pixel_values"}:
        assert torch.equal(there[key].cpu(), here[key])
    torch.testing.assert_close(there["pixel_values"].cpu(), here["pixel_values"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_models_compute_the_same(processor, load_model, prompt, images, settings):
    batch = processor(images=images, text=prompt(images=2), return_tensors="pt", images_kwargs=settings)
    found = []
    for device in ("cpu", DEVICE):
        model, inputs = load_model().to(device), batch.to(device)
        with torch.no_grad():
            visual = {name: value for name, value in inputs.items() if name.startswith(("pixel", "image"))}
            features = torch.cat(model.get_image_features(**visual, return_dict=True).pooler_output)
            found.append((features.cpu(), model(**inputs).logits.cpu()))
            assert model.generate(**inputs, max_new_tokens=2, do_sample=False).device.type == device
    for there, here in zip(*reversed(found), strict=True):
        close(there, here)


def test_off_is_upstream_to_the_last_bit(processor, load_model, prompt, images, upstream):
    def logits(**call):
        batch = processor(images=images, text=prompt(images=2), return_tensors="pt", **call).to(DEVICE)
        with torch.no_grad():
            return load_model().to(DEVICE)(**batch).logits

    with upstream():
        expected = logits()
    assert torch.equal(logits(images_kwargs=SETTINGS[0]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_windows_of_one_length_have_the_bits_that_they_have_one_by_one(dtype):
    """In the released shape, 16 heads of 80; windows of at most 64 patches."""
    config = Qwen2_5_VLVisionConfig(hidden_size=1280, num_heads=16)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    attention = Qwen2_5_VLVisionAttention(config).to("cuda", dtype).eval()
    lengths = torch.randint(1, 65, (300,)).sort().values.int()
    rows = torch.randn(int(lengths.sum()), 1280).to("cuda", dtype)
    angles = torch.rand(len(rows), 80, device="cuda") * 6
    how = {
        "cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().cuda(),
        "position_embeddings": (angles.cos(), angles.sin()),
    }
    with torch.no_grad():
        together, one_by_one = attention(rows, **how, runs=runs_of(lengths)), attention(rows, **how)
    assert torch.equal(together, one_by_one)
