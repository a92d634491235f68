"""Adapters on the language model and on the tower see as many rows and tokens as an image has."""

import peft
import pytest
import torch
from vllm.lora.request import LoRARequest

from tests.serving.engines import IMAGE, OFF, Reference, Request, ask, assert_equal, engine

V1 = {"patch_selection_method": "v1"}
SETTINGS = (V1, {"patch_selection_method": "budget", "alpha": 0.4}, V1 | {"drop_tolerance": 2})
ONE_KIND = "--enable-tower-connector-lora"
"""What is said of a request for the other kind of images: vLLM would give those the first kind's rows."""

TARGETS = {
    "language": ["q_proj", "v_proj", "down_proj"],
    "tower": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "merger.mlp.0", "merger.mlp.2"],
}


def requests_with(pictures, settings):
    return [Request(f"a {IMAGE} b {IMAGE} c", pictures[1:3], settings=one) for one in settings]


@pytest.fixture
def case(tiny, tmp_path):
    """`(checkpoint, adapter's folder, what transformers says without and with an adapter)` for a part of the model."""

    def of(part, requests):
        checkpoint = tiny("qwen2_vl")
        reference = Reference(checkpoint)
        plain = [reference.ask(request) for request in requests]
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=64, target_modules=TARGETS[part], init_lora_weights=False)
        reference.model = peft.get_peft_model(reference.model, config).eval()
        reference.model.save_pretrained(tmp_path)
        adapted = [reference.ask(request) for request in requests]
        assert [answer.logprobs for answer in adapted] != [answer.logprobs for answer in plain]
        return checkpoint, LoRARequest(part, 1, str(tmp_path)), plain, adapted

    return of


@pytest.mark.parametrize("part", TARGETS)
def test_an_adapter(case, pictures, part):
    """All at once, with it and without. Not some with it: that build answers those without wrongly, text alone too."""
    requests = requests_with(pictures, (*SETTINGS, OFF) if part == "language" else SETTINGS)
    checkpoint, adapter, plain, adapted = case(part, requests)
    options = {"enable_lora": True, "max_lora_rank": 8}
    if part == "tower":
        options |= {"enable_tower_connector_lora": True, "mm_processor_kwargs": V1}
    with engine(checkpoint, **options) as llm:
        for one, expected in ((adapter, adapted), (None, plain)):
            for found, other in zip(ask(llm, requests, lora_request=one), expected, strict=True):
                assert_equal(found, other)
        if part == "tower":
            with pytest.raises(ValueError, match=ONE_KIND):
                ask(llm, requests_with(pictures, [OFF]))


def test_an_adapter_on_the_tower_without_settings(case, pictures):
    own, other = requests_with(pictures, (OFF, V1))
    checkpoint, adapter, _, (expected,) = case("tower", [own])
    with engine(checkpoint, enable_lora=True, max_lora_rank=8, enable_tower_connector_lora=True) as llm:
        with pytest.raises(ValueError, match=ONE_KIND):
            ask(llm, [own, other], lora_request=adapter)
        (found,) = ask(llm, [own], lora_request=adapter)
        assert_equal(found, expected)
