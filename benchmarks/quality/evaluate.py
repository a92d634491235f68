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
import os
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.quality.candidates import extra_importance
from benchmarks.quality.items import Item, fingerprint, from_file, generated, normalise
from benchmarks.quality.report import add_compute, markdown, paired, plot, summary
from benchmarks.quality.settings import Setting, downscaled, standard


class Subject:
    """A checkpoint, answering questions under one setting after another."""

    def __init__(self, folder: str, device: str, dtype: str, new_tokens: int) -> None:
        import transformers_apt

        transformers_apt.apply()
        from transformers_apt.embedded.asking import load_checkpoint

        self.model, self.processor = load_checkpoint(folder, device, dtype)
        image_processor = self.processor.image_processor
        self.cell = image_processor.patch_size * image_processor.merge_size
        self.processor.tokenizer.padding_side = "left"
        self.new_tokens = new_tokens

    def answer(self, images: list[Image.Image], questions: list[str], images_kwargs: dict[str, Any]):
        """(answers, vision patches, language tokens), each one per picture."""
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = self.processor(
            text=texts, images=images, images_kwargs=images_kwargs, padding=True, return_tensors="pt"
        ).to(self.model.device)
        grids = inputs["image_grid_thw"]
        patches = inputs.get("image_patch_counts", grids.prod(-1)).tolist()
        tokens = (inputs["input_ids"] == self.model.config.image_token_id).sum(1).tolist()
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True), patches, tokens


def run_setting(subject: Subject, items: list[Item], setting: Setting, sizes: dict[str, Any], batch: int):
    """Asks every question under one setting: answers, patches, tokens per item, and the seconds it took."""
    order = sorted(range(len(items)), key=lambda index: items[index].load().size)
    answers, patches, tokens = [""] * len(items), [0] * len(items), [0] * len(items)
    began = time.perf_counter()
    for start in tqdm(range(0, len(order), batch), desc=setting.name, leave=False, mininterval=5):
        chosen = order[start : start + batch]
        images = [items[index].load() for index in chosen]
        if setting.like is not None:
            whole = sizes[setting.like][setting.equal]
            per_cell = 4 if setting.equal == "patches" else 1
            cell = subject.cell
            images = [
                downscaled(image, -(-whole[index] // per_cell), cell)
                for image, index in zip(images, chosen, strict=True)
            ]
        kwargs = dict(setting.images_kwargs)
        if setting.like is not None:
            kwargs["size"] = {"shortest_edge": cell**2, "longest_edge": cell**2 * 16384}
        found = subject.answer(images, [items[index].question for index in chosen], kwargs)
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
        "weights": weights_hash(options.model),
        "items": len(items),
        "data": fingerprint(items),
        "source": str(options.questions.name) if options.questions else f"generated, seed {options.seed}",
        "dtype": options.dtype,
        "device": platform.processor() or platform.machine() if options.device == "cpu" else options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


_IDENTITY = ("weights", "data", "dtype")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    items = (
        from_file(options.questions, options.images) if options.questions else generated(options.count, options.seed)
    )
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
    subject = Subject(options.model, options.device, options.dtype, options.new_tokens)
    order = {setting.name: index for index, setting in enumerate(standard())}
    with extra_importance():
        for setting in tqdm([setting for setting in wanted if setting.name not in done], desc="settings"):
            if setting.like is not None and setting.like not in kept_answers:
                raise ValueError(f"{setting.name!r} needs {setting.like!r} first: add it to --settings")
            answers, patches, tokens, seconds = run_setting(subject, items, setting, kept_answers, options.batch)
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
    parser.add_argument("--threads", type=int, default=1, help="compute threads on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    evaluate(options)


if __name__ == "__main__":
    main()
