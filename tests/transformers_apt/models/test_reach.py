"""Where the package default reaches, and where it does not."""

import copy
import json
import logging
import os
import subprocess
import sys
from types import ModuleType

import pytest
from transformers import (
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)
from transformers.utils import logging as transformers_logging

from tests.transformers_apt.models.references import BUDGET, is_stock, of_family
from transformers_apt.embedded.tiny_checkpoint import build_tokenizer
from transformers_apt.models.programs import PROGRAMS

BACKENDS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
both_backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def notices(caplog):
    logger = transformers_logging.get_logger("transformers.models.qwen2_vl.adaptive_patches")
    type(logger).warning_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger=logger.name):
        yield lambda: {r.getMessage() for r in caplog.records if "notice appears once" in r.getMessage()}


# -------------------------------------------------------------------- the known chain


def test_the_default_reaches_the_seeds_calls(processor, prompt, half_plain, notices):
    assert "image_patch_layout" in processor(images=half_plain, text=prompt())
    assert "image_patch_layout" in Qwen2VLImageProcessor()(images=half_plain)
    (notice,) = notices()
    assert "Adaptive patches are on for Qwen2-VL" in notice and "TRANSFORMERS_APT_SETTINGS" in notice


@both_backends
def test_subclasses_do_not_get_the_default(backend, processor, prompt, half_plain, notices):
    class Mine(backend):
        pass

    assert is_stock(Mine()(images=half_plain, return_tensors="pt"))
    processor.image_processor = Mine()
    assert is_stock(processor(images=half_plain, text=prompt(), return_tensors="pt"))
    assert "image_patch_layout" in processor(images=half_plain, text=prompt(), images_kwargs=BUDGET)
    assert notices() == set()


def test_another_familys_patch_size_is_no_qwen2_vl(half_plain, notices):
    lone = Qwen2VLImageProcessor(patch_size=16)
    assert is_stock(lone(images=half_plain, return_tensors="pt"))
    assert "image_patch_layout" in lone(images=half_plain, **BUDGET)
    assert notices() == set()


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_loaded_program_keeps_the_default_away(module, processor, prompt, half_plain, monkeypatch, notices):
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    assert is_stock(processor(images=half_plain, text=prompt(), return_tensors="pt"))
    assert is_stock(Qwen2VLImageProcessor()(images=half_plain, return_tensors="pt"))
    (notice,) = notices()
    assert PROGRAMS[module].name in notice and PROGRAMS[module].why in notice and "TRANSFORMERS_APT_SETTINGS" in notice
    asked = processor(images=half_plain, text=prompt(), images_kwargs=BUDGET)
    assert "image_patch_layout" in asked, "asked for, and not called by the program: it is done"


def called_by(module, function):
    """`function()` as if code of `module` had called it."""
    scope = {"__name__": f"{module}.inside", "function": function}
    exec("def call():\n    return function()", scope)
    return scope["call"]()


@pytest.mark.parametrize("module", [module for module, program in PROGRAMS.items() if not program.reads_layouts])
@pytest.mark.parametrize("way", ["call", "attribute", "environment"])
def test_asked_for_by_a_program_that_cannot_read_it_it_is_refused(
    module, way, processor, prompt, half_plain, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    settings = BUDGET if way == "call" else {}
    if way == "attribute":
        processor.image_processor.patch_selection_method, processor.image_processor.alpha = "budget", 0.3
    if way == "environment":
        monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", json.dumps(BUDGET))
    with pytest.raises(ValueError, match=r"transformers-apt\. Pass patch_selection_method='off'") as refusal:
        called_by(module, lambda: processor(images=half_plain, text=prompt(), images_kwargs=settings))
    assert PROGRAMS[module].name in str(refusal.value) and "'budget'" in str(refusal.value)
    off = {"patch_selection_method": "off"}
    assert "image_patch_layout" not in called_by(
        module, lambda: processor(images=half_plain, text=prompt(), images_kwargs=off)
    )


def test_the_notice_is_for_those_who_asked_for_nothing(processor, prompt, half_plain, notices, monkeypatch):
    processor(images=half_plain, text=prompt(), images_kwargs=BUDGET)
    processor(images=half_plain, text=prompt(), images_kwargs={"patch_selection_method": "v1"})
    processor(images=half_plain, text=prompt(), images_kwargs={"thresholds": [2, 1]})
    Qwen2VLImageProcessor(patch_selection_method="v1")(images=half_plain)
    for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        with monkeypatch.context() as patch:
            patch.setenv(rank, "1")
            processor(images=half_plain, text=prompt())
    assert notices() == set()


WORKERS = """
import numpy as np, torch
from torch.utils.data import DataLoader
from transformers import Qwen2VLImageProcessor
image_processor = Qwen2VLImageProcessor()
image = np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8)

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return image_processor(images=image, return_tensors="pt")["pixel_values"]

if __name__ == "__main__":
    if PARENT:
        image_processor(images=image)
    for context in ("fork", "spawn"):
        list(DataLoader(Images(), num_workers=2, multiprocessing_context=context))
"""


@pytest.mark.parametrize("parent", [True, False])
def test_workers_are_silent(parent, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKERS.replace("PARENT", str(parent)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("notice appears once") == parent


def test_processors_of_other_makes_are_left_as_they_are():
    """With slots, with another image processor, and beside a program whose import is blocked."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    class Slotted(CLIPProcessor):
        __slots__ = ("mood",)

    slotted = Slotted(CLIPImageProcessor(), build_tokenizer())
    slotted.mood = "calm"
    for twin in (copy.copy(slotted), copy.deepcopy(slotted)):
        assert twin.mood == "calm" and isinstance(twin.image_processor, CLIPImageProcessor)
    assert "pixel_values" in of_family(Qwen2VLProcessor, CLIPImageProcessor()).model_input_names


def test_a_blocked_import_is_no_program(half_plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "image_patch_layout" in Qwen2VLImageProcessor()(images=half_plain)
