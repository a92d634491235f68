"""Installed, and nothing asked for: vLLM's own way, to the bit. And on a vLLM that is not known: the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.engines import IMAGE, VIDEO, Request, engine, processed

ROOT = Path(__file__).parents[2]
PLUGIN = "transformers_apt.serving"


def outcome(checkpoint, pictures, film, settings):
    """All that could differ: what the processor makes, the hashes, what is generated and how likely it is."""
    from vllm import SamplingParams

    requests = [
        Request(f"a {IMAGE} b {IMAGE} c", pictures[:2], settings=settings),
        Request(f"a {IMAGE} b {VIDEO} c", pictures[2:3], [film], settings=settings),
    ]
    prompts = [request.for_vllm() for request in requests]
    with engine(checkpoint) as llm:
        model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
        found = {"module": type(model).__module__, "requests": []}
        for prompt in processed(llm, requests):
            fields = {
                f"{modality} {i} {name}": [str(field.data.dtype), field.data.flatten().tolist()]
                for modality, items in prompt["mm_kwargs"].items()
                for i, item in enumerate(items)
                for name, field in item.items()
            }
            found["requests"].append([fields, prompt["mm_hashes"], prompt["prompt_token_ids"]])
        for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=4, logprobs=5), use_tqdm=False):
            (completion,) = output.outputs
            chances = [{str(key): value.logprob for key, value in entry.items()} for entry in completion.logprobs]
            found["requests"].append([list(completion.token_ids), chances])
    return found


def in_another_process(tmp_path, checkpoint, variables, settings=None):
    """`outcome` in a process of its own, and what that printed."""
    output = tmp_path / "outcome.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.test_off", str(checkpoint), str(output), json.dumps(settings or {})],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else None
    output.unlink(missing_ok=True)
    return found, done.stdout + done.stderr


@pytest.fixture(scope="module")
def stock(tmp_path_factory, tiny):
    """Without the package."""
    found, printed = in_another_process(tmp_path_factory.mktemp("stock"), tiny("qwen2_vl"), {"TRANSFORMERS_APT": "0"})
    assert found is not None, printed
    assert not found.pop("module").startswith(PLUGIN)
    return found


def test_the_same_bits_as_without_the_package(stock, tmp_path, tiny):
    found, printed = in_another_process(tmp_path, tiny("qwen2_vl"), {})
    assert found is not None, printed
    assert found.pop("module").startswith(PLUGIN)
    assert found == stock
    assert "Adaptive patches" not in printed
    assert any("torch.uint8" in str(fields) for fields, *_ in stock["requests"]), "vLLM normalises on the device"


def test_a_vllm_that_is_not_known_works_as_without_the_package(stock, tmp_path, tiny):
    unknown = {"VLLM_OF_THIS_TEST": "0.99.0"}
    found, printed = in_another_process(tmp_path, tiny("qwen2_vl"), unknown)
    assert found is not None, printed
    assert not found.pop("module").startswith(PLUGIN)
    assert found == stock
    assert printed.count("it is vLLM 0.99.0, and releases 0.32 and 0.33 are supported") == 1
    found, printed = in_another_process(tmp_path, tiny("qwen2_vl"), unknown, {"patch_selection_method": "v1"})
    assert found is None
    assert "it cannot read the adaptive patches of transformers-apt" in printed


if __name__ == "__main__":
    import numpy as np
    from PIL import Image

    if "VLLM_OF_THIS_TEST" in os.environ:
        import vllm

        vllm.__version__ = os.environ["VLLM_OF_THIS_TEST"]
    from transformers_apt.embedded import examples

    checkpoint, output, settings = sys.argv[1:]
    pictures = [Image.open(example.image).convert("RGB").resize((260, 220)) for example in examples()]
    film = np.random.default_rng(0).integers(0, 255, (4, 84, 112, 3), dtype=np.uint8)
    found = outcome(checkpoint, pictures, film, json.loads(settings))
    Path(output).write_text(json.dumps(found), encoding="utf-8")
