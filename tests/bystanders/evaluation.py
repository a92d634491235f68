"""qwen-vl-utils, and lmms-eval's own model class, on Qwen2-VL (and qwen-vl-utils on Qwen2.5-VL)."""

import torch

from tests.bystanders.tiny import build, digest, photos, save, watch_generate


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


def lmms_eval():
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

    model = Qwen2_VL(pretrained=str(save()), device="cpu", device_map="cpu", batch_size=2)
    seen = watch_generate(model.model)
    model.task_dict = {"task": {"test": photos()}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=("What is it?", {"max_new_tokens": 4}, lambda photo: [photo], index, "task", "test"),
            idx=index,
            metadata={"task": "task", "doc_id": index, "repeats": 1},
        )
        for index in range(2)
    ]
    return {"answers": model.generate_until(requests), "seen": seen}
