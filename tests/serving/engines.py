"""vLLM's engine in this process, and what transformers says to the same requests."""

import contextlib
import gc
import os
import sys
from dataclasses import dataclass, field
from typing import Any

# Before vLLM is imported: one process, so that a test can look inside; a cache of keys and values of 1 GiB.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
OFF = {"patch_selection_method": "off"}


@dataclass
class Request:
    """A prompt with its pictures, and the settings that it names.

    Attributes:
        text: with a placeholder for each image and video.
        images: PIL images.
        videos: `(frames, height, width, 3)` uint8 arrays.
        settings: as in `images_kwargs`; none are named where it is empty.
        nested: whether they travel in `images_kwargs`, or beside it.
        whole: the text is the whole prompt.
        new_tokens: how many to generate, at most.
    """

    text: str
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    nested: bool = True
    whole: bool = False
    new_tokens: int = 6

    @property
    def prompt(self) -> str:
        if self.whole:
            return self.text
        return f"<|im_start|>user\n{self.text}<|im_end|>\n<|im_start|>assistant\n"

    def for_vllm(self, family: str = "qwen2_vl") -> dict[str, Any]:
        data: dict[str, Any] = {"image": self.images} if self.images else {}
        if self.videos:
            described = [(video, _metadata(video)) for video in self.videos]
            data["video"] = self.videos if family == "qwen2_vl" else described
        found: dict[str, Any] = {"prompt": self.prompt, "multi_modal_data": data}
        if self.settings:
            found["mm_processor_kwargs"] = {"images_kwargs": self.settings} if self.nested else self.settings
        return found


def _metadata(video: Any) -> dict[str, Any]:
    return {
        "fps": 2.0,
        "duration": len(video) / 2,
        "total_num_frames": len(video),
        "frames_indices": list(range(len(video))),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


@dataclass
class Answer:
    """What a prompt became, what was generated, and the log-probability of each generated token."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@contextlib.contextmanager
def _without_llvmlite():
    """The CPU build looks at whatever every loaded module holds when it starts, and fails at numba's compiler."""
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "llvmlite"}
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(hidden)


@contextlib.contextmanager
def engine(checkpoint: Any, **options: Any):
    """A vLLM engine, gone afterwards."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_batched_tokens": 2048,
        "limit_mm_per_prompt": {"image": 3, "video": 1},
        "disable_log_stats": True,
        "seed": 0,
    }
    with _without_llvmlite():
        llm = LLM(str(checkpoint), **settings | options)
    try:
        yield llm
    finally:
        # Now, not when nobody holds the engine any more: it would take the next one's process groups down.
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def ask(llm: Any, requests: list[Request], family: str = "qwen2_vl", **options: Any) -> list[Answer]:
    """All at once, greedily; `options` of `LLM.generate`."""
    from vllm import SamplingParams

    sampling = [SamplingParams(temperature=0, max_tokens=request.new_tokens, logprobs=0) for request in requests]
    outputs = llm.generate([request.for_vllm(family) for request in requests], sampling, use_tqdm=False, **options)
    answers = []
    for output in outputs:
        (completion,) = output.outputs
        chosen = zip(completion.logprobs, completion.token_ids, strict=True)
        logprobs = [entry[token].logprob for entry, token in chosen]
        answers.append(Answer(list(output.prompt_token_ids), list(completion.token_ids), logprobs))
    return answers


def processed(llm: Any, requests: list[Request]) -> list[dict[str, Any]]:
    """Requests as vLLM's processor leaves them, past its cache, which would wait for the engine to read them."""
    return llm.renderer.render_cmpl([request.for_vllm() for request in requests], skip_mm_cache=True)


class Reference:
    """transformers with this package."""

    def __init__(self, checkpoint: Any, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)

    @torch.no_grad()
    def ask(self, request: Request) -> Answer:
        videos = {}
        if request.videos:
            videos = {"videos": request.videos, "videos_kwargs": {"do_sample_frames": False}}
            if "Qwen2VL" not in type(self.processor).__name__:
                videos["video_metadata"] = [_metadata(video) for video in request.videos]
                for described in videos["video_metadata"]:
                    del described["do_sample_frames"]
        inputs = self.processor(
            text=request.prompt,
            images=request.images or None,
            images_kwargs=request.settings or OFF,
            return_tensors="pt",
            **videos,
        )
        output = self.model.generate(
            **inputs,
            max_new_tokens=request.new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        prompt = inputs["input_ids"][0].tolist()
        tokens = output.sequences[0, len(prompt) :].tolist()
        logprobs = [
            torch.log_softmax(logits[0].float(), -1)[token].item()
            for logits, token in zip(output.logits, tokens, strict=True)
        ]
        return Answer(prompt, tokens, logprobs)


def assert_equal(found: Answer, expected: Answer, tolerance: float = 1e-4) -> None:
    assert found.prompt == expected.prompt
    assert found.tokens == expected.tokens
    differences = [abs(a - b) for a, b in zip(found.logprobs, expected.logprobs, strict=True)]
    assert max(differences) < tolerance, differences
