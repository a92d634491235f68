"""Families whose models vLLM's CPU build cannot compute in float32, or not with transformers' weights."""

import pytest
import torch

from tests.serving.engines import IMAGE, OFF, Reference, Request, ask, engine

REQUESTS = (
    ({}, 1),
    (OFF, 2),
    ({"patch_selection_method": "v1"}, 2),
    ({"patch_selection_method": "budget", "alpha": 0.4}, 1),
)


def requests_of(pictures):
    return [Request(f"a {IMAGE} b" * count, pictures[:count], settings=settings) for settings, count in REQUESTS]


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_qwen3_5_in_bfloat16(tiny, pictures, family):
    """The hybrid model's kernel for CPUs is for bfloat16: the same prompts, and nearly the same probabilities."""
    checkpoint = tiny(family)
    reference = Reference(checkpoint, torch.bfloat16)
    with engine(checkpoint, dtype="bfloat16", load_format="dummy" if "moe" in family else "auto") as llm:
        found = ask(llm, requests_of(pictures), family)
    for answer, request in zip(found, requests_of(pictures), strict=True):
        expected = reference.ask(request)
        assert answer.prompt == expected.prompt
        if "moe" not in family and answer.tokens[0] == expected.tokens[0]:
            assert abs(answer.logprobs[0] - expected.logprobs[0]) < 0.1


def test_qwen3_vl_moe_with_other_weights(tiny, pictures):
    """vLLM does not load the experts that transformers saves of a tiny model, so it makes weights of its own."""
    checkpoint = tiny("qwen3_vl_moe")
    reference = Reference(checkpoint)
    requests = requests_of(pictures)
    with engine(checkpoint, load_format="dummy") as llm:
        together = ask(llm, requests, "qwen3_vl_moe")
        alone = [ask(llm, [request], "qwen3_vl_moe")[0] for request in reversed(requests)][::-1]
    for one, other, request in zip(together, alone, requests, strict=True):
        assert one.prompt == other.prompt == reference.ask(request).prompt
        assert one.tokens == other.tokens
