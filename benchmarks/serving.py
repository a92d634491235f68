"""What adaptive patches save a vLLM server, next to the same server with `off` and with smaller images.

    python -m benchmarks.serving                                       # the embedded model, on a CPU
    python -m benchmarks.serving --shape 2b --requests 4 --side 448    # Qwen2-VL-2B's shape, random weights
    python -m benchmarks.serving --model Qwen/Qwen2.5-VL-7B-Instruct --requests 512 --concurrency 64 --rate 8

Needs an environment with vLLM. Each case is a server of its own, one after the other, `--rounds` times over, so that
whatever else the machine does hits all of them. Every picture is sent once, so that no cache helps. After each case
with adaptive patches comes `max_pixels`, which makes images so small that they have as many language tokens: what
somebody would do without them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw

from benchmarks.measuring import hardware, report
from benchmarks.vllm_server import NAME, Server, serving
from transformers_apt.cli.comparison import label
from transformers_apt.embedded import demo_model_path, examples
from transformers_apt.models.settings import FIT, METHOD, OFF, RECOMMENDED

SETTINGS = (dict(RECOMMENDED), {METHOD: FIT, "alpha": 0.45})
NEW_TOKENS = 16


def pictures(count: int, side: int, first: int) -> list[bytes]:
    """PNG files of the embedded pictures in turn, the longer side `side` px, each with a number of its own on it."""
    sources = [Image.open(example.image).convert("RGB") for example in examples()]
    found = []
    for number in range(first, first + count):
        source = sources[number % len(sources)]
        scale = side / max(source.size)
        image = source.resize((round(source.width * scale), round(source.height * scale)), Image.Resampling.LANCZOS)
        ImageDraw.Draw(image).text((4, 4), f"{number:06d}", fill=(0, 0, 0))
        file = io.BytesIO()
        image.save(file, "png")
        found.append(file.getvalue())
    return found


# ---------------------------------------------------------------- cases


def mean_tokens(processor: Any, images: Sequence[bytes], images_kwargs: dict[str, Any]) -> float:
    """Language tokens of an image, on average."""
    opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    found = processor(
        images=opened, text=[processor.image_token] * len(opened), images_kwargs=images_kwargs, return_tensors="pt",
        padding=True,
    )  # fmt: skip
    return int((found["input_ids"] == processor.image_token_id).sum()) / len(opened)


def same_tokens(processor: Any, images: Sequence[bytes], tokens: float) -> dict[str, Any]:
    """`images_kwargs` of a uniform downscale to about as many language tokens."""
    unit = (processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2
    low, high = unit, 16384 * unit

    def limited(area: int) -> dict[str, Any]:
        return {"size": {"shortest_edge": unit, "longest_edge": area}, METHOD: OFF}

    while high - low > unit // 4:
        middle = (low + high) // 2
        low, high = (low, middle) if mean_tokens(processor, images, limited(middle)) > tokens else (middle, high)
    return limited(low)


def cases_of(processor: Any, images: Sequence[bytes], settings: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`images_kwargs` by name: `off`, and each of the settings with a downscale to as many language tokens."""
    found: dict[str, dict[str, Any]] = {OFF: {METHOD: OFF}}
    for one in settings:
        found[label(one)] = one
        found[f"max_pixels, tokens of {label(one)}"] = same_tokens(
            processor, images, mean_tokens(processor, images, one)
        )
    return found


# ---------------------------------------------------------------- load


@dataclass(frozen=True)
class Timing:
    """Of one request: seconds to the first token and to the last, and the tokens of its prompt."""

    first: float
    last: float
    prompt: int


def ask(server: Server, image: bytes, began: float | None = None) -> Timing:
    """Stream an answer; `began` is when it should have been asked, where that was earlier."""
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Read the code."}]
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": NEW_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic() if began is None else began
    first, prompt = 0.0, 0
    with server.open(body) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content") is not None and not first:
                first = time.monotonic() - began
            if chunk.get("usage"):
                prompt = chunk["usage"]["prompt_tokens"]
    last = time.monotonic() - began
    return Timing(first or last, last, prompt)


def closed_loop(server: Server, images: Sequence[bytes], concurrency: int) -> list[Timing]:
    """As many requests at once as `concurrency`, the next as soon as one is answered."""
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda image: ask(server, image), images))


def fixed_rate(server: Server, images: Sequence[bytes], rate: float) -> list[Timing]:
    """`rate` requests a second, whether or not earlier ones are answered."""
    start = time.monotonic() + 0.1

    def one(index: int) -> Timing:
        due = start + index / rate
        time.sleep(max(0.0, due - time.monotonic()))
        return ask(server, images[index], due)

    with ThreadPoolExecutor(len(images)) as pool:
        return list(pool.map(one, range(len(images))))


class Peaks:
    """The most memory that a server's processes held, and the largest part of its cache of keys and values in use."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.memory = 0
        self.cache = 0.0
        self._done = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            process = psutil.Process(self.server.process.pid)
            try:
                family = [process, *process.children(recursive=True)]
                self.memory = max(self.memory, sum(each.memory_info().rss for each in family))
            except psutil.NoSuchProcess:
                continue
            self.cache = max(self.cache, self.server.metric("vllm:kv_cache_usage_perc"))


# ---------------------------------------------------------------- the measurement


def measure(server: Server, options: argparse.Namespace, first: int) -> list[dict[str, Any]]:
    """One round of one case: the closed loop, then the fixed rate."""
    closed_loop(server, pictures(options.concurrency, options.side, first + 2 * options.requests), options.concurrency)
    loads: dict[str, Callable[[Sequence[bytes]], list[Timing]]] = {
        "closed": lambda images: closed_loop(server, images, options.concurrency),
        "rate": lambda images: fixed_rate(server, images, options.rate),
    }
    rows = []
    for number, (load, run) in enumerate(loads.items()):
        images = pictures(options.requests, options.side, first + number * options.requests)
        peaks = Peaks(server)
        began = time.monotonic()
        with peaks.watched():
            timings = run(images)
        seconds = time.monotonic() - began
        firsts = sorted(timing.first for timing in timings)
        rows.append(
            {
                "load": load,
                "requests/s": len(timings) / seconds,
                "TTFT p50 s": statistics.median(firsts),
                "TTFT p99 s": firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
                "prompt tokens": statistics.fmean(timing.prompt for timing in timings),
                "memory GiB": peaks.memory / 2**30,
                "KV cache used %": 100 * peaks.cache,
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median over rounds of each case and load, and requests per second next to `off`'s."""
    found = []
    for load in ("closed", "rate"):
        base = None
        for case in dict.fromkeys(row["case"] for row in rows):
            chosen = [row for row in rows if (row["case"], row["load"]) == (case, load)]
            numbers = [key for key in chosen[0] if key not in ("case", "load", "round")]
            median = {key: statistics.median(row[key] for row in chosen) for key in numbers}
            base = base or median
            found.append(
                {
                    "load": load,
                    "case": case,
                    **median,
                    "throughput": median["requests/s"] / base["requests/s"],
                    "TTFT p50": base["TTFT p50 s"] / median["TTFT p50 s"],
                }
            )
    return found


def random_checkpoint(folder: Path, shape: str) -> Path:
    """A checkpoint of Qwen2-VL without weights, of a published shape.

    Raises:
        ValueError: no such shape.
    """
    from benchmarks.random_models import config_of, sizes_of
    from transformers_apt.embedded.tiny_checkpoint import build_processor

    shapes = sizes_of("qwen2_vl")
    if shape not in shapes:
        raise ValueError(f"--shape {shape}: expected one of {list(shapes)}")
    processor = build_processor()
    config = config_of("qwen2_vl", shapes[shape], processor.tokenizer)
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; by default the embedded one")
    parser.add_argument("--shape", help="instead of a model: random weights of a published shape of Qwen2-VL")
    parser.add_argument(
        "--settings", type=json.loads, action="append", help="of an adaptive case, as JSON; repeatable"
    )
    parser.add_argument("--requests", type=int, default=48, help="of each case, load and round")
    parser.add_argument("--concurrency", type=int, default=8, help="of the closed loop")
    parser.add_argument("--rate", type=float, default=4, help="requests a second at the fixed rate")
    parser.add_argument("--side", type=int, default=672, help="longer side of the pictures, px")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/serving"))
    options, server_arguments = parser.parse_known_args()

    from transformers import AutoProcessor

    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(demo_model_path())
        if options.shape:
            model = str(random_checkpoint(Path(folder), options.shape))
            server_arguments += ["--load-format", "dummy", "--dtype", "bfloat16"]
        processor = AutoProcessor.from_pretrained(model)
        cases = cases_of(processor, pictures(12, options.side, 0), options.settings or SETTINGS)
        rows = []
        for round_ in range(options.rounds):
            for number, (case, images_kwargs) in enumerate(cases.items()):
                asked = ["--mm-processor-kwargs", json.dumps({"images_kwargs": images_kwargs})]
                log = options.output / f"server_{number}.log"
                with serving(model, *asked, *server_arguments, log=log) as server:
                    first = round_ * 3 * options.requests
                    rows += [{"case": case, "round": round_, **row} for row in measure(server, options, first)]
    about = {
        "hardware": hardware("cuda" if _has_gpu() else "cpu"),
        "vllm": _vllm_version(),
        "cases": cases,
        "options": {name: str(value) for name, value in vars(options).items()},
        "rounds": rows,
    }
    table = summary(rows)

    def plot(axes: Any) -> None:
        for load in ("closed", "rate"):
            chosen = [row for row in table if row["load"] == load]
            axes.plot([row["prompt tokens"] for row in chosen], [row["requests/s"] for row in chosen], "o", label=load)
        for row in table:
            axes.annotate(row["case"], (row["prompt tokens"], row["requests/s"]))
        axes.set(xlabel="prompt tokens", ylabel="requests per second")
        axes.legend()

    report(options.output, "serving", table, about, plot)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


if __name__ == "__main__":
    main()
