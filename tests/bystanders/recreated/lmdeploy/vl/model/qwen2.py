"""What LMDeploy does with the image processor and the tower of Qwen2-VL.

Follows `lmdeploy/vl/model/qwen2.py`, `Qwen2VLModel.preprocess` and `Qwen2VLModel.forward`.
"""


def preprocess(processor, images, **kwargs):
    found = []
    for image in images:
        result = processor.image_processor(images=[image], return_tensors="pt", **kwargs)
        merge_length = processor.image_processor.merge_size**2
        result.update(image_size=image.size, image_tokens=result["image_grid_thw"].prod(dim=1) // merge_length)
        found.append(result)
    return found


def forward(visual, items, merge_length):
    found = []
    for item in items:
        embeds = visual(item["pixel_values"], grid_thw=item["image_grid_thw"]).pooler_output
        found += embeds.split((item["image_grid_thw"].prod(dim=1) // merge_length).tolist())
    return found
