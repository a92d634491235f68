"""Servers, recreated (see recreated/README.md): Qwen2-VL, Qwen2.5-VL and Qwen3-VL through each."""

import sys
from pathlib import Path

import torch

from tests.bystanders.tiny import FAMILIES, IMAGE, build, digest, photos

sys.path.insert(0, str(Path(__file__).parent / "recreated"))
PROMPT = f"{IMAGE}{IMAGE}Hi"


def _visual(model):
    return model.model.visual


@torch.no_grad()
def vllm():
    from vllm.model_executor.models import qwen2_vl as program

    found = {}
    for family in FAMILIES:
        processor, model = build(family)
        inputs = program.call_hf_processor(processor, photos())
        items = program.mm_fields(inputs)
        ids = program.prompt_updates(processor, processor.tokenizer(PROMPT)["input_ids"], items)
        embeds = program.process_image_input(_visual(model), items)
        assert ids.count(processor.image_token_id) == sum(map(len, embeds))
        found[family] = digest({**inputs, "items": items, "ids": ids, "embeds": embeds})
    return found


@torch.no_grad()
def sglang():
    from sglang.srt.multimodal.processors import base_processor as program

    found = {}
    for family in FAMILIES:
        processor, model = build(family)
        inputs = program.process_mm_data(processor, PROMPT, photos())
        offsets = program.get_mm_items_offset(inputs["input_ids"][0], processor.image_token_id)
        items = program.get_new_expanded_mm_items(inputs)
        tower = _visual(model)
        embeds = [
            tower(item, grid_thw=grid[None]).pooler_output
            for item, grid in zip(items, inputs["image_grid_thw"], strict=True)
        ]
        assert [len(embed) for embed in embeds] == [last - first + 1 for first, last in offsets]
        logits = model(**inputs).logits
        found[family] = digest({**inputs, "offsets": offsets, "items": items, "embeds": embeds, "logits": logits})
    return found


@torch.no_grad()
def lmdeploy():
    from lmdeploy.vl.model import qwen2 as program

    found = {}
    for family in ("qwen2_vl", "qwen2_5_vl"):
        processor, model = build(family)
        items = program.preprocess(processor, photos())
        embeds = program.forward(_visual(model), items, processor.image_processor.merge_size**2)
        assert [len(embed) for embed in embeds] == [int(item["image_tokens"]) for item in items]
        found[family] = digest({"items": items, "embeds": embeds})
    return found


def vllm_explicit():
    """Asked for in the call, as with vLLM's `--mm-processor-kwargs`."""
    from vllm.model_executor.models import qwen2_vl as program

    processor, _ = build()
    return digest(program.call_hf_processor(processor, photos(), patch_selection_method="budget", alpha=0.3))
