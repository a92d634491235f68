"""What the tests of the patch share: a tiny checkpoint, real photos, prompts, and a way back to upstream."""

import logging
from contextlib import contextmanager
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import transformers_apt
from transformers_apt.cli.main import app
from transformers_apt.embedded.tiny_checkpoint import Family, build_config, build_model, build_processor

FAMILIES = get_args(Family)
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}


def pytest_generate_tests(metafunc):
    """A test marked `every_family` runs over the families, any other that needs a checkpoint on Qwen2-VL's.

    The mixture-of-experts models share their siblings' towers: only what is marked `every_family(moe=True)` takes
    them. A test that parametrizes `family` itself means something else by it.
    """
    own = any("family" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "family" in metafunc.fixturenames and not own:
        mark = metafunc.definition.get_closest_marker("every_family")
        moe = mark is not None and mark.kwargs.get("moe", False)
        families = [name for name in FAMILIES if moe or "moe" not in name] if mark else FAMILIES[:1]
        metafunc.parametrize("family", families, scope="session")


@pytest.fixture(scope="session", autouse=True)
def patched():
    """Where the package is installed, the start-up hook has done this already."""
    transformers_apt.apply()


@pytest.fixture(autouse=True)
def log_reaches_caplog():
    """transformers keeps its log from the root logger, where caplog listens, except where `CI` is set; and a benchmark
    that ran in this process has silenced it."""
    logger = logging.getLogger("transformers")
    before = logger.propagate, logger.level
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    yield
    logger.propagate = before[0]
    logger.setLevel(before[1])


@pytest.fixture(scope="session")
def upstream():
    """`with upstream():` is transformers without the patch."""

    @contextmanager
    def reverted():
        transformers_apt.revert()
        try:
            yield
        finally:
            transformers_apt.apply()

    return reverted


@pytest.fixture(scope="session")
def folder(family, tmp_path_factory):
    """A checkpoint whose weights are spread so that positions, attention and pixels decide the tokens."""
    folder = tmp_path_factory.mktemp(family)
    processor = build_processor(family=family)
    model = build_model(build_config("test", processor.tokenizer, family), seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(6)
        # a random model must not answer with placeholders: upstream would want an image for each
        model.lm_head.weight[[model.config.image_token_id, model.config.video_token_id]] = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="session")
def load_model(folder):
    """A fresh model, so that no test sees the rope deltas of another."""

    def load(**options):
        return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()

    return load


@pytest.fixture
def model(load_model):
    return load_model()


@pytest.fixture(scope="session")
def photos():
    """Three real photos of different sizes, small enough for a test."""
    originals = (data.astronaut(), load_sample_image("china.jpg"), data.coffee())
    sizes = ((168, 224), (224, 140), (113, 300))  # the last one is not a multiple of 28
    return [Image.fromarray(pixels).resize(size) for pixels, size in zip(originals, sizes, strict=True)]


@pytest.fixture(scope="session")
def half_plain():
    """224 × 168 px: plain, graded ever more steeply, and a photo, so that every method finds all three sizes."""
    pixels = np.full((168, 224, 3), 128, dtype=np.uint8)
    for start, step in ((28, 14), (56, 7), (84, 2)):
        pixels[:, start : start + 56] = (np.arange(168, dtype=np.uint8) // step * step)[:, None, None]
    pixels[:, 140:] = np.asarray(Image.fromarray(data.astronaut()).resize((84, 168)))
    return Image.fromarray(pixels)


@pytest.fixture
def prompt(processor):
    """`prompt(images=1, videos=0, text=…)`: a chat prompt with Qwen2-VL's placeholders."""

    def make(images=1, videos=0, text="What is this?"):
        content = [{"type": "image"}] * images + [{"type": "video"}] * videos + [{"type": "text", "text": text}]
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    return make


@pytest.fixture
def inputs(processor, prompt, half_plain):
    """One prompt with one image, tiled by all three patch sizes."""
    batch = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=BUDGET)
    assert set(batch["image_patch_layout"][:, 2].tolist()) == {1, 2, 4}
    return batch


@pytest.fixture(scope="session")
def crop():
    """196 × 140 px of the astronaut: whole 28-px cells, so nothing is resized, and incomplete 56-px cells."""
    return Image.fromarray(data.astronaut()[290:430, 300:496])


@pytest.fixture
def photo(crop, tmp_path):
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    crop.save(path)
    return path


@pytest.fixture(scope="session")
def visualize_command():
    """`visualize_command(*arguments)` runs `transformers-apt visualize`."""
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, ["visualize", *map(str, arguments), "--device", "cpu"])
