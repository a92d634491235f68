"""Other families' models, from photo to answer, are to the bit what they are in a process without the patch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import transformers_apt
from tests.transformers_apt.models.family_models import FAMILIES, colqwen2, outputs
from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def without_the_patch():
    done = subprocess.run(
        [sys.executable, "-m", "tests.transformers_apt.models.family_models"],
        cwd=ROOT,
        env=os.environ | {"TRANSFORMERS_APT": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_bit_identical_to_a_process_without_the_patch(family, without_the_patch):
    assert transformers_apt.status().active
    found = outputs(family)
    assert "image_patch_layout" not in found and "output" in found
    assert found == without_the_patch[family.__name__]


def test_budget_names_the_supported_families():
    processor, _, _ = colqwen2(build_tokenizer())
    with pytest.raises(ValueError, match=r"with \w+Processor: adaptive patches are supported for Qwen2-VL"):
        processor(images=Image.new("RGB", (64, 64)), patch_selection_method="budget", alpha=0.3)


def test_a_model_of_another_family_says_that_it_cannot_read_a_layout():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    ids = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot read image_patch_layout.*Qwen2-VL.*'off'"):
        model.generate(ids, image_patch_layout=ids, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"^The following `model_kwargs` are not used by the model: \['mood'\]"):
        model.generate(ids, mood=ids, max_new_tokens=1)
