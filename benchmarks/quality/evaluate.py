"""Accuracy per token: `python -m benchmarks.quality.evaluate --model FOLDER --out FOLDER`.

Every answer comes from the public path: `processor(images=..., text=..., images_kwargs={...})` and `model.generate`.
Results are written after each setting; the same command continues where it stopped. With `--questions FILE.jsonl
--images FOLDER` the same table is made from your own data and your own checkpoint.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.quality.asking import Asking, Task, answering, items_of
from benchmarks.quality.items import Item, fingerprint, normalise
from benchmarks.quality.report import add_compute, markdown, paired, plot, summary
from benchmarks.quality.settings import Setting, standard


def run_setting(asking: Asking, items: list[Item], setting: Setting, sizes: dict[str, Any], batch: int):
    """Asks every question under one setting: answers, patches, tokens per item, and the seconds it took."""
    order = sorted(range(len(items)), key=lambda index: items[index].load().size)
    answers, patches, tokens = [""] * len(items), [0] * len(items), [0] * len(items)
    least = None if setting.like is None else sizes[setting.like][setting.equal]
    began = time.perf_counter()
    tasks: list[Task] = []
    for start in reversed(range(0, len(order), batch)):  # the large ones first: processes then end together
        chosen = order[start : start + batch]
        tasks.append((setting, chosen, least and [least[index] for index in chosen]))
    done = zip(tasks, asking(tasks), strict=True)
    for (_, chosen, _), found in tqdm(done, desc=setting.name, total=len(tasks), leave=False, mininterval=5):
        for index, answer, patch_count, token_count in zip(chosen, *found, strict=True):
            answers[index], patches[index], tokens[index] = answer, patch_count, token_count
    return answers, patches, tokens, time.perf_counter() - began


def score(items: list[Item], answers: list[str], patches: list[int], tokens: list[int]) -> dict[str, dict[str, float]]:
    """Exact match and mean sizes, over all items and by group."""
    right = judge(items, answers)
    return {
        name: summary([right[index] for index in found])
        | {
            "patches": sum(patches[index] for index in found) / len(found),
            "tokens": sum(tokens[index] for index in found) / len(found),
        }
        for name, found in members(items).items()
    }


def judge(items: list[Item], answers: list[str]) -> list[bool]:
    """Which answers are right."""
    return [
        normalise(answer) in {normalise(expected) for expected in item.answers}
        for item, answer in zip(items, answers, strict=True)
    ]


def members(items: list[Item]) -> dict[str, list[int]]:
    """The places of each group's items."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        for group in ("all", *item.groups):
            found[group].append(index)
    return found


COSTS = {
    "patches": lambda row: row["patches"],
    "tokens": lambda row: row["tokens"],
    "compute 2B": lambda row: row["compute"]["2b"],
    "compute 7B": lambda row: row["compute"]["7b"],
}


def against_downscaling(
    items: list[Item], answers: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Settings beside downscaling of the same cost, question by question.

    A downscale stands beside the setting it was matched to and all others of the same size; a threshold, to which none
    was matched, beside the smallest downscale that costs no less on average, for each kind of cost.
    """
    right = {name: judge(items, kept["answers"]) for name, kept in answers.items()}
    places_of, found = members(items), []

    def pair(setting: str, against: str, equal: str) -> dict[str, Any]:
        groups = {
            name: paired([right[setting][index] for index in places], [right[against][index] for index in places])
            for name, places in places_of.items()
        }
        return {"setting": setting, "against": against, "equal": equal, "groups": groups}

    for downscale in standard():
        if downscale.name not in answers or downscale.like not in answers or downscale.equal is None:
            continue
        size = answers[downscale.like][downscale.equal]
        for setting in standard():
            kept = answers.get(setting.name)
            if setting.like is None and kept is not None and kept[downscale.equal] == size:
                found.append(pair(setting.name, downscale.name, downscale.equal))
    downscales = [row for row in rows if row["name"].startswith("downscale")]
    for row in rows:
        for equal, cost in COSTS.items() if row["name"].startswith("v1") and "compute" in row else ():
            larger = [other for other in downscales if cost(other) >= cost(row)]
            if larger:
                found.append(pair(row["name"], min(larger, key=cost)["name"], f"{equal}, or more"))
    return found


def weights_hash(folder: str) -> str:
    """Identifies the weights of a local folder; a name on the hub stands for itself."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16] if files else folder


def _meta(options: argparse.Namespace, items: list[Item]) -> dict[str, Any]:
    import transformers

    return {
        "model": Path(options.model).name,
        "weights": "-".join(weights_hash(folder) for folder in (options.model, options.adapter) if folder),
        "items": len(items),
        "data": fingerprint(items),
        "source": str(options.questions.name) if options.questions else f"generated, seed {options.seed}",
        "dtype": options.dtype,
        "device": platform.processor() or platform.machine() if options.device == "cpu" else options.device,
        "threads": torch.get_num_threads(),
        "processes": options.processes,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


_IDENTITY = ("weights", "data", "dtype")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    items = items_of(options)
    wanted = [setting for setting in standard() if _chosen(setting, options.settings)]
    if not wanted:
        names = [setting.name for setting in standard()]
        raise ValueError(f"--settings {options.settings} matches nothing, expected patterns of {names}")
    meta, file = _meta(options, items), options.out / "results.json"
    results: dict[str, Any] = {"meta": meta, "settings": []}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if any(kept["meta"][key] != meta[key] for key in _IDENTITY):
            raise ValueError(f"{file} is of another model or other questions: choose another --out, or remove it")
        results["settings"] = kept["settings"]
    options.out.mkdir(parents=True, exist_ok=True)
    answers_file = options.out / "answers.json"
    kept_answers = json.loads(answers_file.read_text(encoding="utf-8")) if answers_file.exists() else {}
    done = {row["name"] for row in results["settings"]} & set(kept_answers)
    order = {setting.name: index for index, setting in enumerate(standard())}
    with answering(options, items) as asking:
        for setting in tqdm([setting for setting in wanted if setting.name not in done], desc="settings"):
            if results["settings"] and time.monotonic() - began > 60 * options.minutes:
                tqdm.write(f"{options.minutes:g} minutes are over: the rest is left for the next call")
                break
            if setting.like is not None and setting.like not in kept_answers:
                raise ValueError(f"{setting.name!r} needs {setting.like!r} first: add it to --settings")
            answers, patches, tokens, seconds = run_setting(asking, items, setting, kept_answers, options.batch)
            kept_answers[setting.name] = {"answers": answers, "patches": patches, "tokens": tokens}
            row = {
                "name": setting.name,
                "series": setting.series,
                "images_kwargs": setting.images_kwargs,
                "patches": sum(patches) / len(items),
                "tokens": sum(tokens) / len(items),
                "seconds": round(seconds, 2),
                "groups": score(items, answers, patches, tokens),
            }
            results["settings"] = [old for old in results["settings"] if old["name"] != setting.name] + [row]
            results["settings"].sort(key=lambda row: order.get(row["name"], len(order)))
            _write(answers_file, json.dumps(kept_answers))
            _write(file, json.dumps(results, indent=1))
            tqdm.write(
                f"{setting.name}: {100 * row['groups']['all']['accuracy']:.1f} % at {row['patches']:.0f} patches"
            )
    add_compute(results["settings"], kept_answers)
    results["paired"] = against_downscaling(items, kept_answers, results["settings"])
    _write(file, json.dumps(results, indent=1))
    (options.out / "results.md").write_text(markdown(results), encoding="utf-8")
    plot(results, options.out)
    return results


def _chosen(setting: Setting, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(setting.name, pattern) for pattern in patterns)


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="folder or name of a checkpoint; the compute columns are Qwen2-VL's"
    )
    parser.add_argument("--adapter", help="folder of what has practised: a branch, or PEFT's adapter")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, results.md and the plots")
    parser.add_argument("--questions", type=Path, help="JSONL: image, question, answers; without it, drawn scenes")
    parser.add_argument("--images", type=Path, help="folder of the images of --questions")
    parser.add_argument("--count", type=int, default=2100, help="how many questions to draw")
    parser.add_argument("--seed", type=int, default=1, help="of the drawn questions")
    parser.add_argument(
        "--settings", nargs="+", metavar="PATTERN", help="only settings whose name matches, e.g. 'v1*'"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--processes", type=int, default=1, help="how many answer at once")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further setting after so many")
    parser.add_argument("--threads", type=int, default=1, help="compute threads on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    evaluate(options)


if __name__ == "__main__":
    main()
