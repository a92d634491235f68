"""What other families' tiny random models make of a photo: run with the patch and, in another process, without.

TRANSFORMERS_APT=0 python -m tests.transformers_apt.models.family_models
"""

import hashlib
import json

import torch
import transformers
from PIL import Image
from skimage import data
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}


def tokens(tokenizer):
    words = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    names = dict(zip(keys, words, strict=True))
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def qwen2_5_vl(tokenizer):
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config={**VISION, "fullatt_block_indexes": [1], "window_size": 56},
        **tokens(tokenizer),
    )
    processor = transformers.Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    return processor, transformers.Qwen2_5_VLForConditionalGeneration, config


def qwen3_vl(tokenizer):
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config={**VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **tokens(tokenizer),
    )
    image_processor = Qwen2VLImageProcessor(patch_size=16)
    processor = transformers.Qwen3VLProcessor(image_processor, tokenizer, Qwen3VLVideoProcessor())
    return processor, transformers.Qwen3VLForConditionalGeneration, config


def qwen3_5(tokenizer):
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    config = transformers.Qwen3_5Config(
        text_config={
            **TEXT,
            **linear,
            "vocab_size": len(tokenizer),
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {**TEXT["rope_parameters"], "partial_rotary_factor": 1.0},
        },
        vision_config={**VISION, "num_position_embeddings": 64},
        **tokens(tokenizer),
    )
    image_processor = Qwen2VLImageProcessor(patch_size=16)
    processor = transformers.Qwen3VLProcessor(image_processor, tokenizer, Qwen3VLVideoProcessor())
    return processor, transformers.Qwen3_5ForConditionalGeneration, config


def colqwen2(tokenizer):
    vlm = transformers.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 32},
        **tokens(tokenizer),
    )
    config = transformers.ColQwen2Config(vlm_config=vlm, embedding_dim=16)
    processor = transformers.ColQwen2Processor(Qwen2VLImageProcessor(), tokenizer)
    return processor, transformers.ColQwen2ForRetrieval, config


FAMILIES = (qwen2_5_vl, qwen3_vl, qwen3_5, colqwen2)


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


def outputs(family):
    """Digests of everything the processor returns, of the model's output, and the tokens it generates."""
    tokenizer = build_tokenizer()
    processor, model_class, config = family(tokenizer)
    torch.manual_seed(0)
    model = model_class(config).eval()
    photo = Image.fromarray(data.astronaut()).resize((192, 160))
    text = {} if family is colqwen2 else {"text": [IMAGE + "Hi"]}
    inputs = processor(images=[photo], return_tensors="pt", **text)
    found = {name: digest(value) for name, value in inputs.items()}
    with torch.no_grad():
        output = model(**inputs)
        output = output.embeddings if family is colqwen2 else output.logits
        assert bool(output.isfinite().all()) and float(output.std()) > 0  # else equality would prove nothing
        found["output"] = digest(output)
        if family is not colqwen2:
            found["generated"] = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    return found


if __name__ == "__main__":
    import transformers_apt

    assert not transformers_apt.status().active
    print(json.dumps({family.__name__: outputs(family) for family in FAMILIES}))
