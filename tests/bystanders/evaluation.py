"""qwen-vl-utils on Qwen2-VL and Qwen2.5-VL, and lmms-eval from a task's file to its score."""

import os
import tempfile
from pathlib import Path

import torch

from tests.bystanders.tiny import build, digest, photos, watch_generate
from transformers_apt.embedded import demo_model_path, examples


def _messages(photo, **more):
    content = [{"type": "image", "image": photo, **more}, {"type": "text", "text": "Hi"}]
    return [{"role": "user", "content": content}]


def _readme(family):
    """The script of qwen-vl-utils' README; `(what it fetched, what the model made of it)`."""
    from qwen_vl_utils import process_vision_info

    processor, model = build(family)
    messages = [_messages(photo, max_pixels=224 * 224) for photo in photos()]
    texts = [processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in messages]
    images, videos = process_vision_info(messages)
    inputs = processor(text=texts, images=images, videos=videos, padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=4)
    return digest(images), digest({**inputs, "answer": answer})


def qwen_vl_utils():
    """On Qwen2-VL only what it fetched: what follows is plain transformers code, which the default does reach."""
    return {"qwen2_vl": _readme("qwen2_vl")[0], "qwen2_5_vl": _readme("qwen2_5_vl")}


def qwen_vl_utils_on_qwen2_vl():
    return _readme("qwen2_vl")


TASK = """
task: drawn
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{max_new_tokens: 8}}
doc_to_visual: image
doc_to_text: question
doc_to_target: answer
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
"""A task of lmms-eval as its users write one."""


def lmms_eval():
    """lmms-eval on a local task: the embedded pictures and questions, put to the embedded model."""
    folder = Path(tempfile.mkdtemp())
    os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(folder / "cache")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models.simple.qwen2_vl import Qwen2_VL
    from lmms_eval.tasks import TaskManager

    data = folder / "drawn.parquet"
    _write_rows(data)
    (folder / "drawn.yaml").write_text(TASK.format(data=data))
    model = Qwen2_VL(pretrained=str(demo_model_path()), device="cpu", device_map="cpu", batch_size=2)
    seen = watch_generate(model.model)
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model, tasks=["drawn"], task_manager=tasks, bootstrap_iters=0)
    answers = [sample["filtered_resps"] for sample in found["samples"]["drawn"]]
    return {"exact match": float(found["results"]["drawn"]["exact_match,none"]), "answers": answers, "seen": seen}


def _write_rows(path):
    import datasets

    rows = [{"image": str(row.image), "question": row.question, "answer": row.answer} for row in examples()]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(path)
