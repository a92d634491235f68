"""Image processors that belong to a processor, and how that is remembered."""

import copy
import json
import pickle

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    ColQwen2Processor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from tests.transformers_apt.models.references import BUDGET, is_stock, of_family
from transformers_apt.embedded.tiny_checkpoint import build_tokenizer
from transformers_apt.models import reach

BACKENDS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
both_backends = pytest.mark.parametrize("backend", BACKENDS)


@both_backends
@pytest.mark.parametrize("family", [Qwen2VLProcessor, Qwen2_5_VLProcessor], ids=lambda family: family.__name__)
def test_an_owned_image_processor_called_on_its_own_is_stock(backend, family, half_plain, upstream):
    """As LLaMA-Factory, ms-swift and upstream's tests of Qwen2.5-VL call it, and count placeholders from the grid."""
    with upstream():
        expected = backend()(images=half_plain, return_tensors="pt")
    owner = of_family(family, backend())
    found = owner.image_processor(images=half_plain, return_tensors="pt")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "image_patch_layout" in owner.image_processor(images=half_plain, **BUDGET), "asked for, it is done"
    assert "image_patch_layout" in backend()(images=half_plain), "a lone one still has the default"


def assigned(owner, folder):
    owner.image_processor = type(owner.image_processor)()
    return owner.image_processor


def in_another_attribute(owner, folder):
    owner.of_pages = type(owner.image_processor)()
    return owner.of_pages


def pickled(owner, folder):
    return pickle.loads(pickle.dumps(owner)).image_processor


def copied(owner, folder):
    return copy.deepcopy(owner).image_processor


def pickled_alone(owner, folder):
    """As a DataLoader does whose workers are spawned and which holds the image processor only."""
    return pickle.loads(pickle.dumps(owner.image_processor))


def copied_alone(owner, folder):
    return copy.deepcopy(copy.copy(owner.image_processor))


def saved_whole(owner, folder):
    owner.save_pretrained(folder)
    return type(owner.image_processor).from_pretrained(folder)


def saved_whole_and_loaded_by_auto(owner, folder):
    owner.save_pretrained(folder)
    backend = "pil" if isinstance(owner.image_processor, Qwen2VLImageProcessorPil) else "torchvision"
    loaded = AutoImageProcessor.from_pretrained(folder, backend=backend)
    assert type(loaded) is type(owner.image_processor)
    return loaded


def saved_alone_beside_a_config(owner, folder):
    owner.image_processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[type(owner)]}))
    return type(owner.image_processor).from_pretrained(folder / "preprocessor_config.json")


MODEL_TYPES = {Qwen2_5_VLProcessor: "qwen2_5_vl", ColQwen2Processor: "colqwen2"}
WAYS = (
    assigned, in_another_attribute, pickled, copied, pickled_alone, copied_alone, saved_whole,
    saved_whole_and_loaded_by_auto, saved_alone_beside_a_config,
)  # fmt: skip


@both_backends
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("family", MODEL_TYPES, ids=lambda family: family.__name__)
def test_every_way_to_own_an_image_processor(way, family, backend, half_plain, tmp_path):
    """It stays as on stock, and what it is asked for is done where the family's models can read it."""
    parts = [backend(), build_tokenizer(), *([Qwen2VLVideoProcessor()] if family is Qwen2_5_VLProcessor else [])]
    owner = family(*parts)
    found = way(owner, tmp_path)
    assert is_stock(found(images=half_plain, return_tensors="pt"))
    assert not any("owner" in name for name in (*vars(found), *found.to_dict()))
    if family is Qwen2_5_VLProcessor:
        assert "image_patch_layout" in found(images=half_plain, **BUDGET)
    else:
        with pytest.raises(ValueError, match=r"ColQwen2Processor|processor of colqwen2"):
            found(images=half_plain, **BUDGET)


def test_the_environment_does_not_reach_an_unsupported_familys_image_processor(half_plain, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", json.dumps(BUDGET))
    owner = ColQwen2Processor(Qwen2VLImageProcessor(), build_tokenizer())
    assert is_stock(owner.image_processor(images=half_plain, return_tensors="pt"))
    assert "image_patch_layout" in Qwen2VLImageProcessor()(images=half_plain)


def test_a_processor_that_keeps_it_its_own_way(half_plain, upstream):
    """By a property, past `__setattr__`, or built while the patch was away: its first call says whose it is."""

    class ByProperty(Qwen2_5_VLProcessor):
        @property
        def image_processor(self):
            return self.__dict__["kept"]

        @image_processor.setter
        def image_processor(self, value):
            self.__dict__["kept"] = value

    with upstream():
        plain = of_family(Qwen2_5_VLProcessor, Qwen2VLImageProcessor())
    for owner in (plain, of_family(ByProperty, Qwen2VLImageProcessor())):
        owner(images=half_plain, text=[f"{IMAGE}Hi"])
        assert is_stock(owner.image_processor(images=half_plain, return_tensors="pt"))


def test_ownership_is_neither_saved_nor_kept_alive(half_plain, tmp_path):
    lone = Qwen2VLImageProcessor()
    before = dict(vars(lone))
    owner = of_family(Qwen2VLProcessor, lone)
    assert vars(lone) == before
    owner.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    assert set(saved) == set(json.loads(Qwen2VLImageProcessor().to_json_string()))
    marked = len(reach._owners)
    del owner, lone
    assert len(reach._owners) < marked


@both_backends
@pytest.mark.parametrize("name", ["Qwen2VLProcessor", "Qwen2_5_VLProcessor", None])
def test_a_lone_one_of_another_familys_checkpoint(backend, name, half_plain, tmp_path):
    backend().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved if name is None else {**saved, "processor_class": name}))
    lone = backend.from_pretrained(tmp_path)
    assert ("image_patch_layout" in lone(images=half_plain)) == (name != "Qwen2_5_VLProcessor")
    assert "image_patch_layout" in lone(images=half_plain, **BUDGET)
