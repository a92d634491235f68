"""The founding documents' usage snippets, in a fresh process that imports nothing but transformers.

They are word for word theirs, except for the checkpoint's path, the path of the photo, and a prompt with Qwen2-VL's
image placeholder, which upstream demands. What they take as given (a list of images, say) stands in `GIVEN`; what
shall be true after a snippet follows it. They run one after the other: starting transformers is what takes the time.
"""

import os
import subprocess
import sys

GIVEN = """
import sys
assert any(type(finder).__name__ == "PostImportFinder" for finder in sys.meta_path), (
    "the start-up hook is not installed here; run `make venv`"
)
from PIL import Image
image = Image.open(PHOTO).convert("RGB")
image_list = [image, image.rotate(90, expand=True)]
prompt = "<|vision_start|><|image_pad|><|vision_end|>Describe this image"
def sizes(output):
    layout = output["image_patch_layout"]
    return [int((layout[:, 2] == size).sum()) for size in (1, 2, 4)]
def cells(output):
    return int(output["image_grid_thw"].prod(-1).sum())
"""

QUICK_ANSWER = """
from transformers import Qwen2VLProcessor

processor = Qwen2VLProcessor.from_pretrained("Qwen/Qwen2-VL-7B")

# 方式1: 在调用时指定 (推荐)
outputs = processor(
    images=image,
    text=prompt,
    images_kwargs={
        'patch_selection_method': 'budget',  # 'v1', 'v2', 或 'budget'
        'alpha': 0.3                         # 对budget: 0-1; 对v2: 0.5-1.5
    }
)
"""
QUICK_ANSWER_HOLDS = """
first = outputs
assert len(first["pixel_values"]) == sum(sizes(first)) <= round(0.3 * cells(first))
"""

QUICK_ANSWER_2 = """
# 方式2: 设置默认值
processor.image_processor.patch_selection_method = 'budget'
processor.image_processor.alpha = 0.3
outputs = processor(images=image, text=prompt)
"""
QUICK_ANSWER_2_HOLDS = """
assert (first["image_patch_layout"] == outputs["image_patch_layout"]).all()
assert first["input_ids"] == outputs["input_ids"]
"""

IMAGE_PROCESSOR_BUDGET = """
from transformers import Qwen2VLImageProcessor

processor = Qwen2VLImageProcessor(
    patch_selection_method='budget',
    alpha=0.3
)
pixel_values = processor(images=image_list)
"""
IMAGE_PROCESSOR_BUDGET_HOLDS = """
assert [info["alpha"] for info in processor.last_budget_info] == [0.3, 0.3]
assert len(pixel_values["pixel_values"]) == sum(info["actual"] for info in processor.last_budget_info)
"""

INFERENCE = """
import torch
from transformers import Qwen2VLProcessor, Qwen2VLForConditionalGeneration

processor = Qwen2VLProcessor.from_pretrained("Qwen/Qwen2-VL-7B")
model = Qwen2VLForConditionalGeneration.from_pretrained("Qwen/Qwen2-VL-7B")

# 设置默认配置
processor.image_processor.patch_selection_method = 'budget'
processor.image_processor.alpha = 0.3

inputs = processor(
    images=image,
    text=prompt,
    return_tensors='pt'
)

device = "cuda" if torch.cuda.is_available() else "cpu"
inputs = {k: v.to(device) for k, v in inputs.items()}

with torch.no_grad():
    output_ids = model.generate(**inputs, max_new_tokens=256)

response = processor.tokenizer.decode(output_ids[0])
"""
INFERENCE_HOLDS = """
assert output_ids.shape[1] > inputs["input_ids"].shape[1]
assert (output_ids[:, :inputs["input_ids"].shape[1]] == inputs["input_ids"]).all()
assert len(inputs["pixel_values"]) <= round(0.3 * cells(inputs)) and isinstance(response, str)
"""

IMAGE_PROCESSOR_V2 = """
from transformers import Qwen2VLImageProcessor

# Create processor with specific selection method and alpha parameter
processor = Qwen2VLImageProcessor(
    patch_selection_method='v2',  # or 'v1', 'budget'
    alpha=0.5  # for v2: threshold scaling; for budget: retention fraction
)

# Preprocess images
pixel_values = processor(images=image_list, patch_selection_method='v2', alpha=0.5)
"""
IMAGE_PROCESSOR_V2_HOLDS = """
assert len(pixel_values["pixel_values"]) == sum(sizes(pixel_values)) and len(pixel_values["image_grid_thw"]) == 2
"""

PROCESSOR = """
from transformers import Qwen2VLProcessor
from PIL import Image

# Initialize processor
processor = Qwen2VLProcessor.from_pretrained("Qwen/Qwen2-VL-7B")

# Load an image
image = Image.open("path/to/image.jpg")

# Process with specific patch selection method
outputs = processor(
    images=image,
    text="Describe this image",
    images_kwargs={
        'patch_selection_method': 'budget',  # Use budget mode
        'alpha': 0.3  # Retain 30% of smallest patches
    }
)

# Now outputs contains:
# - input_ids: tokenized text
# - pixel_values: processed image patches
# - image_grid_thw: image grid dimensions
"""
PROCESSOR_HOLDS = """
by_budget = outputs
assert {"input_ids", "pixel_values", "image_grid_thw"} <= set(by_budget)
assert len(by_budget["pixel_values"]) == sum(sizes(by_budget)) <= round(0.3 * cells(by_budget))
"""

MODE_V1 = """
outputs = processor(
    images=image,
    text="Describe this image",
    images_kwargs={'patch_selection_method': 'v1'}
)
"""
MODE_V1_HOLDS = """
by_v1 = outputs
assert sum(sizes(by_budget)) < sum(sizes(by_v1)) < cells(by_v1)
"""

MODE_V2 = """
outputs = processor(
    images=image,
    text="Describe this image",
    images_kwargs={
        'patch_selection_method': 'v2',
        'alpha': 0.5  # threshold = 0.5 × mean(max_entropy)
    }
)
"""
MODE_V2_HOLDS = """
assert sizes(outputs) not in (sizes(by_v1), sizes(by_budget))
"""

MODE_BUDGET = """
outputs = processor(
    images=image,
    text="Describe this image",
    images_kwargs={
        'patch_selection_method': 'budget',
        'alpha': 0.3  # Keep 30% of smallest patches
    }
)
"""
MODE_BUDGET_HOLDS = """
assert (outputs["image_patch_layout"] == by_budget["image_patch_layout"]).all()
"""

COMPLETE = r"""
import torch
from transformers import Qwen2VLProcessor, Qwen2VLForConditionalGeneration
from PIL import Image

# Load processor and model
processor = Qwen2VLProcessor.from_pretrained("Qwen/Qwen2-VL-7B")
model = Qwen2VLForConditionalGeneration.from_pretrained("Qwen/Qwen2-VL-7B")

# Load image
image = Image.open("frieren.jpg").convert("RGB")

# Process with budget mode (30% retention)
inputs = processor(
    images=image,
    text="<|im_start|>user\n<image>\nDescribe this image<|im_end|>\n<|im_start|>assistant\n",
    images_kwargs={
        'patch_selection_method': 'budget',
        'alpha': 0.3
    },
    return_tensors='pt'
)

# Move to GPU if available
device = "cuda" if torch.cuda.is_available() else "cpu"
inputs = {k: v.to(device) for k, v in inputs.items()}

# Generate response
with torch.no_grad():
    output_ids = model.generate(**inputs, max_new_tokens=128)

# Decode output
response = processor.tokenizer.decode(output_ids[0], skip_special_tokens=True)
print(response)
"""

DEFAULT_VALUES = """
from transformers import Qwen2VLImageProcessor

# Create processor with budget mode as default
image_processor = Qwen2VLImageProcessor(
    patch_selection_method='budget',
    alpha=0.3
)

# This processor will use budget mode by default
pixel_values = image_processor(images=image_list)
"""
DEFAULT_VALUES_HOLDS = """
by_default = pixel_values
assert sum(sizes(by_default)) <= round(0.3 * cells(by_default))
"""

OVERRIDE = """
# But you can still override at call time
pixel_values = image_processor(
    images=image_list,
    patch_selection_method='v2',
    alpha=0.5
)
"""
OVERRIDE_HOLDS = """
assert sizes(pixel_values) != sizes(by_default)
assert (image_processor.patch_selection_method, image_processor.alpha) == ('budget', 0.3)
"""

INSPECTION = """
from apt_code.patch_tokenizer import PatchTokenizer

# These stats are available when using budget mode
# You can check them in the image processor's internal state
# base_small_tokens: Total smallest patches (14×14 grid)
# budget: Allocated patches (round(alpha × base_small_tokens))
# k: Additional patches from larger scales
# actual: Actually selected patches
"""
INSPECTION_HOLDS = """
assert PatchTokenizer().last_budget_info is None
"""

SNIPPETS = [
    # document 000
    (QUICK_ANSWER, QUICK_ANSWER_HOLDS),
    (QUICK_ANSWER_2, QUICK_ANSWER_2_HOLDS),
    # document 001
    (IMAGE_PROCESSOR_BUDGET, IMAGE_PROCESSOR_BUDGET_HOLDS),
    (INFERENCE, INFERENCE_HOLDS),
    # document 002
    (IMAGE_PROCESSOR_V2, IMAGE_PROCESSOR_V2_HOLDS),
    (PROCESSOR, PROCESSOR_HOLDS),
    (MODE_V1, MODE_V1_HOLDS),
    (MODE_V2, MODE_V2_HOLDS),
    (MODE_BUDGET, MODE_BUDGET_HOLDS),
    (COMPLETE, INFERENCE_HOLDS),
    (DEFAULT_VALUES, DEFAULT_VALUES_HOLDS),
    (OVERRIDE, OVERRIDE_HOLDS),
    (INSPECTION, INSPECTION_HOLDS),
]


def test_the_snippets_work(folder, half_plain, tmp_path):
    photo = tmp_path / "photo.png"
    half_plain.save(photo)
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    replaced = {
        '"Qwen/Qwen2-VL-7B"': repr(str(folder)),
        '"path/to/image.jpg"': "PHOTO",
        '"frieren.jpg"': "PHOTO",
        '"Describe this image"': f'"{placeholder}Describe this image"',
        "<image>": placeholder,
    }
    code = f"PHOTO = {str(photo)!r}\n{GIVEN}"
    for snippet, holds in SNIPPETS:
        for theirs, ours in replaced.items():
            snippet = snippet.replace(theirs, ours)
        code += snippet + holds
    # The documents' inference examples move the inputs to a GPU, but not the model: hide any GPU.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", f"{code}\nprint('done')"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("done")
    assert "Adaptive patches are on" not in done.stderr, "the notice is for programs that asked for nothing"
