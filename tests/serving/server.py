"""A vLLM server over HTTP, and many requests to it at once, bad ones among them.

`python -m tests.serving.server --requests 1000 --concurrency 32` is the long run; `test_server.py` a short one.
"""

import argparse
import base64
import io
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.vllm_server import NAME, Server, serving
from tests.serving.engines import OFF, Reference, Request
from transformers_apt.embedded import demo_model_path, examples

SETTINGS = (
    None,
    OFF,
    {"patch_selection_method": "v1"},
    {"patch_selection_method": "budget", "alpha": 0.4},
    {"patch_selection_method": "joint", "alpha": 0.6},
)


@dataclass(frozen=True)
class Call:
    """A body for `/v1/chat/completions`, the status that it should get, and words that the answer should have."""

    body: dict[str, Any]
    status: int
    words: str


def embedded(*arguments: str, log: Path) -> Any:
    """A server of the embedded model."""
    options = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--trust-request-mm-kwargs")
    return serving(demo_model_path(), *options, *arguments, log=log)


def body(question: str, image: bytes | None, settings: Any = None, nested: bool = True) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    found = {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
    }
    if settings is not None:
        found["mm_processor_kwargs"] = {"images_kwargs": settings} if nested else settings
    return found


def good_calls() -> list[Call]:
    """Every picture and its question under every setting, with what transformers answers."""
    reference = Reference(demo_model_path())
    found = []
    for example in examples():
        picture = Image.open(example.image).convert("RGB")
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
        prompt = reference.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for settings in SETTINGS:
            answer = reference.ask(Request(prompt, [picture], settings=settings or OFF, whole=True))
            words = reference.processor.decode(answer.tokens, skip_special_tokens=True)
            found.append(Call(body(example.question, example.image.read_bytes(), settings), 200, words))
    return found


def bad_calls() -> list[Call]:
    """Settings that cannot be used and images that cannot be read."""
    example = examples()[0]
    image = example.image.read_bytes()
    thin = io.BytesIO()
    Image.new("RGB", (900, 3)).save(thin, "png")
    settings = [
        ({"patch_selection_method": "best"}, "patch_selection_method='best'"),
        ({"patch_selection_method": "budget", "alpha": 7}, "alpha"),
        ({"patch_selection_method": ["v1"]}, "patch_selection_method=['v1']"),
        ({"patch_selection_method": "v1", "thresholds": "x"}, "thresholds"),
        ({"patch_selection_method": "v1", "importance_method": {}}, "importance_method={}"),
    ]
    return [
        *(
            Call(body(example.question, image, value, nested), 400, words)
            for value, words in settings
            for nested in (True, False)
        ),
        Call(body(example.question, image[:200]), 400, ""),
        Call(body(example.question, b"no image", SETTINGS[3]), 400, ""),
        Call(body(example.question, thin.getvalue(), SETTINGS[3]), 400, ""),
    ]


def run(server: Server, count: int, concurrency: int, seed: int = 0) -> dict[str, Any]:
    """Send a mixture of calls, a quarter of them bad.

    Returns:
        How many got what, the seconds it took, and `wrong`: what got another answer than it should have, in words.
    """
    good, bad, dice = good_calls(), bad_calls(), random.Random(seed)
    calls = [dice.choice(bad if dice.random() < 0.25 else good) for _ in range(count)]

    def one(call: Call) -> tuple[int, str | None]:
        status, answer = server.post(call.body)
        if status != call.status:
            return status, f"status {status} instead of {call.status}: {json.dumps(answer)[:600]}"
        said = answer["choices"][0]["message"]["content"] if status == 200 else json.dumps(answer)
        right = said == call.words if status == 200 else call.words in answer["error"]["message"]
        asked = call.body.get("mm_processor_kwargs")
        return status, None if right else f"{said[:600]!r} instead of {call.words!r}, for {asked}"

    began = time.monotonic()
    with ThreadPoolExecutor(concurrency) as pool:
        found = list(pool.map(one, calls))
    return {
        "requests": count,
        "at once": concurrency,
        "seconds": round(time.monotonic() - began, 1),
        "statuses": dict(Counter(status for status, _ in found)),
        "wrong": [why for _, why in found if why is not None],
        "alive": server.is_healthy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--log", type=Path, default=Path("runs/serving/server.log"))
    options, server_arguments = parser.parse_known_args()
    with embedded(*server_arguments, log=options.log) as server:
        print(json.dumps(run(server, options.requests, options.concurrency), indent=2))


if __name__ == "__main__":
    main()
