"""vLLM with this package says what transformers with this package says: ids, and log-probabilities in float32."""

import pytest
from PIL import Image

from tests.serving.conftest import FAMILIES
from tests.serving.engines import IMAGE, OFF, VIDEO, Reference, Request, ask, assert_equal, engine
from transformers_apt.embedded import examples

SETTINGS = (
    {},  # nothing asked for
    OFF,
    {"patch_selection_method": "v1"},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [36, 36]},
    {"patch_selection_method": "v2", "alpha": 0.5},
    {"patch_selection_method": "budget", "alpha": 0.4},
    {"patch_selection_method": "joint", "alpha": 0.5},
    {"patch_selection_method": "v1", "importance_method": "upsample_mse", "drop_tolerance": 2, "predict_tolerance": 4},
    {"patch_selection_method": "fit", "alpha": 0.5},
    {"max_language_tokens": 40},
)


def requests_of(pictures, film):
    """Every setting with one image, with two, and with a video beside it."""
    found = []
    for settings in SETTINGS:
        found += [
            Request(f"{IMAGE}Hello", [pictures[0]], settings=settings),
            Request(f"a {IMAGE} b {IMAGE} c", pictures[1:3], settings=settings, nested=False),
            Request(f"a {IMAGE} b {VIDEO} c", [pictures[3]], [film], settings=settings),
            Request(f"{VIDEO} b {IMAGE} c {IMAGE} d", pictures[4:6], [film], settings=settings),
        ]
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tiny, pictures, film):
    """A family, its checkpoint, requests, and what transformers says to them."""
    checkpoint = tiny(request.param)
    reference = Reference(checkpoint)
    requests = requests_of(pictures, film)
    return request.param, checkpoint, requests, [reference.ask(one) for one in requests]


def assert_all_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def test_all_requests_in_one_batch_and_again_from_the_caches(case):
    family, checkpoint, requests, expected = case
    with engine(checkpoint) as llm:
        assert_all_equal(ask(llm, requests, family), expected)
        assert_all_equal(ask(llm, requests, family), expected)


def test_prompts_that_are_read_in_chunks(case):
    """48 tokens at a time: images straddle chunks, and start in the midst of one."""
    family, checkpoint, requests, expected = case
    with engine(checkpoint, max_num_batched_tokens=48, max_num_seqs=4) as llm:
        assert_all_equal(ask(llm, requests[2::3], family), expected[2::3])


def test_the_embedded_model_reads_the_embedded_pictures(embedded):
    reference = Reference(embedded)
    requests = [
        Request(f"{IMAGE}{example.question}", [Image.open(example.image).convert("RGB")], settings=settings)
        for example in examples()[::2]
        for settings in SETTINGS
    ]
    with engine(embedded) as llm:
        found = ask(llm, requests)
    assert_all_equal(found, [reference.ask(request) for request in requests])
    assert len({len(answer.prompt) for answer in found[: len(SETTINGS)]}) > 3  # the settings do differ


def test_requests_that_are_preempted_are_read_again(tiny, pictures, monkeypatch):
    """More requests than the cache of keys and values holds: vLLM throws some out, and starts them again."""
    from vllm.v1.core.sched.scheduler import Scheduler

    preempt, thrown_out = Scheduler._preempt_request, []

    def counted(self, request, *args, **kwargs):
        thrown_out.append(request)
        return preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", counted)
    checkpoint = tiny("qwen2_vl")
    reference = Reference(checkpoint)
    requests = [
        Request(f"{number} {IMAGE} b {IMAGE} c", pictures[:2], settings=settings, new_tokens=48)
        for number in range(3)
        for settings in SETTINGS
    ]
    with engine(checkpoint, num_gpu_blocks_override=12, max_model_len=256, block_size=32) as llm:
        assert_all_equal(ask(llm, requests), [reference.ask(request) for request in requests])
    assert thrown_out
