"""What SGLang does with the Hugging Face processor.

Follows `python/sglang/srt/multimodal/processors/base_processor.py`, `BaseMultimodalProcessor.process_mm_data` and
`get_mm_items_offset`, and `python/sglang/srt/managers/mm_utils.py`, `get_new_expanded_mm_items`.
"""

from itertools import pairwise

import torch


def process_mm_data(processor, input_text, images, **kwargs):
    return processor(text=[input_text], images=images, padding=True, return_tensors="pt", **kwargs)


def get_mm_items_offset(input_ids, mm_token_id):
    """`(first, last)` of each run of placeholders."""
    mask = input_ids == mm_token_id
    starts = (mask & ~torch.roll(mask, 1)).nonzero().flatten()
    ends = (mask & ~torch.roll(mask, -1)).nonzero().flatten()
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def get_new_expanded_mm_items(inputs):
    """One item an image, cut by the grid; the radix cache is keyed by their bytes."""
    sizes = [int(grid.prod()) for grid in inputs["image_grid_thw"]]
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [inputs["pixel_values"][start:end] for start, end in pairwise(ends)]
