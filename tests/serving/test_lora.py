"""Adapters on the language model and on the tower see as many rows and tokens as an image has."""

import peft
import pytest
import torch
from vllm.lora.request import LoRARequest

from tests.serving.engines import IMAGE, OFF, Reference, Request, ask, assert_equal, engine

SETTINGS = (OFF, {"patch_selection_method": "v1"}, {"patch_selection_method": "budget", "alpha": 0.4})
TARGETS = {
    "language": ["q_proj", "v_proj", "down_proj"],
    "tower": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "merger.mlp.0", "merger.mlp.2"],
}


@pytest.mark.parametrize("part", TARGETS)
def test_an_adapter(tiny, pictures, tmp_path, part):
    checkpoint = tiny("qwen2_vl")
    reference = Reference(checkpoint)
    requests = [Request(f"a {IMAGE} b {IMAGE} c", pictures[1:3], settings=settings) for settings in SETTINGS]
    plain = [reference.ask(request) for request in requests]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=64, target_modules=TARGETS[part], init_lora_weights=False)
    reference.model = peft.get_peft_model(reference.model, config).eval()
    reference.model.save_pretrained(tmp_path)
    expected = [reference.ask(request) for request in requests]
    assert [answer.logprobs for answer in expected] != [answer.logprobs for answer in plain]
    options = {"enable_lora": True, "max_lora_rank": 8, "enable_tower_connector_lora": part == "tower"}
    adapter = LoRARequest(part, 1, str(tmp_path))
    found, found_plain = [], []
    with engine(checkpoint, **options) as llm:
        # On the tower one by one: vLLM fails where one step encodes images of two kinds, as with images and videos
        for together in (requests,) if part == "language" else ([request] for request in requests):
            found += ask(llm, together, lora_request=adapter)
            found_plain += ask(llm, together)
    for one, other in zip([*found, *found_plain], [*expected, *plain], strict=True):
        assert_equal(one, other)
