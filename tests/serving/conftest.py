"""The serving tests need an environment of their own: `make test-vllm`. Elsewhere they are left out."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from transformers_apt.embedded import demo_model_path, examples
from transformers_apt.embedded.tiny_checkpoint import build_config, build_model, build_processor

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Those whose models vLLM can compute in float32 on a CPU."""


def save_tiny(folder, family):
    """A tiny random checkpoint of a family, with what vLLM wants that transformers can do without."""
    processor = build_processor(family=family)
    config = build_config(tokenizer=processor.tokenizer, family=family)
    if family.startswith("qwen3_5"):  # what vLLM's kernels for CPUs take
        config.text_config.linear_key_head_dim = config.text_config.linear_value_head_dim = 128
        config.text_config.head_dim = 64
        config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
    build_model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    if family.startswith("qwen3"):  # as in the released checkpoints: transformers assumes it, vLLM reads it
        path = folder / "config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved["text_config"]["rope_parameters"]["mrope_interleaved"] = True
        saved["text_config"].setdefault("norm_topk_prob", True)
        path.write_text(json.dumps(saved), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Tiny checkpoints by family, made when first asked for."""
    made = {}

    def of(family):
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp(family), family)
        return made[family]

    return of


@pytest.fixture(scope="session")
def embedded():
    return demo_model_path()


@pytest.fixture(scope="session")
def pictures():
    """The embedded pictures, small enough that a test of many requests stays quick."""
    return [Image.open(example.image).convert("RGB").resize((260, 220)) for example in examples()]


@pytest.fixture(scope="session")
def film():
    return np.random.default_rng(0).integers(0, 255, (4, 84, 112, 3), dtype=np.uint8)
