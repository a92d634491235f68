"""LLaMA-Factory's own multimodal plugin and collator on Qwen2-VL and Qwen2.5-VL.

Its package pins an older transformers; `DISABLE_VERSION_CHECK=1` is its own way to run with a newer one.
"""

import os

import torch

from tests.bystanders.tiny import BUDGET, ask_for, build, digest, photos


def budget():
    return train_step(("qwen2_vl",), BUDGET)


def train_step(families=("qwen2_vl", "qwen2_5_vl"), settings=None):
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq
    from llamafactory.data.mm_plugin import get_mm_plugin

    found = {}
    for family in families:
        processor, model = build(family)
        ask_for(processor, settings)
        plugin = get_mm_plugin("qwen2_vl", image_token="<|image_pad|>", video_token="<|video_pad|>")
        template = type("Template", (), {"mm_plugin": plugin})()
        features = []
        for photo in photos():
            messages = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "A rocket."}]
            messages = plugin.process_messages(messages, [photo], [], [], processor)
            ids = processor.tokenizer(messages[0]["content"] + messages[1]["content"])["input_ids"]
            features.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids, "images": [photo]})
        processor.tokenizer.padding_side = "right"
        collate = MultiModalDataCollatorForSeq2Seq(
            tokenizer=processor.tokenizer, model=model, template=template, processor=processor, pad_to_multiple_of=8
        )
        batch = collate(features)
        output = model(**batch)
        output.loss.backward()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        found[family] = digest({**batch, "loss": output.loss, "gradients": torch.cat(gradients)})
    return found
