"""What vLLM does with the Hugging Face processor of Qwen2-VL and its successors.

Follows `vllm/multimodal/processing`, `BaseMultiModalProcessor._apply_hf_processor_mm_only` (images are processed with
a text of placeholders only, because the prompt is tokenized on its own); `vllm/model_executor/models/qwen2_vl.py`,
`_create_qwen2vl_field_factory` (`Qwen2VLMultiModalProcessor._get_mm_fields_config`; slices, which never complain),
`Qwen2VLMultiModalProcessor._get_prompt_updates` and `Qwen2VLForConditionalGeneration._process_image_input`.
"""

import torch


def call_hf_processor(processor, images, **mm_processor_kwargs):
    text = processor.image_token * len(images)
    return processor(text=text, images=images, return_tensors="pt", **mm_processor_kwargs)


def mm_fields(inputs):
    sizes = inputs["image_grid_thw"].prod(-1).tolist()
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    rows = inputs["pixel_values"]
    return [
        {"pixel_values": rows[start:end], "image_grid_thw": grid}
        for start, end, grid in zip(ends, ends[1:], inputs["image_grid_thw"], strict=False)
    ]


def prompt_updates(processor, prompt_ids, items):
    image_id, found = processor.image_token_id, []
    waiting = iter(items)
    for token in prompt_ids:
        count = 1
        if token == image_id:
            count = int(next(waiting)["image_grid_thw"].prod()) // processor.image_processor.merge_size**2
        found += [token] * count
    return found


def process_image_input(visual, items):
    rows = torch.cat([item["pixel_values"] for item in items])
    grids = torch.stack([item["image_grid_thw"] for item in items])
    embeds = visual(rows, grid_thw=grids).pooler_output
    return list(embeds.split((grids.prod(-1) // visual.spatial_merge_size**2).tolist()))
