"""Processors of other families around the image processor that they share with Qwen2-VL."""

import transformers
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

from tests.bystanders.tiny import digest, photos
from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

#: `(processor, its image token, what else it is built of)`, as `models/<family>/processing_<family>.py` reads them.
FAMILIES = {
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "<|image_pad|>", ()),
    "qwen3_vl": ("Qwen3VLProcessor", "<|image_pad|>", ()),
    "qwen2_5_omni": ("Qwen2_5OmniProcessor", "<|image_pad|>", ("feature_extractor",)),
    "qwen3_omni_moe": ("Qwen3OmniMoeProcessor", "<|image_pad|>", ("feature_extractor",)),
    "colqwen2": ("ColQwen2Processor", None, ()),
    "dots3_note": ("Dots3NoteProcessor", "<|imgpad|>", ("feature_extractor",)),
    "exaone4_5": ("Exaone4_5_Processor", "<|image_pad|>", ()),
    "hyperclovax_vision_v2": ("HyperCLOVAXVisionV2Processor", "<|image_pad|>", ()),
    "lfm3_vl": ("Lfm3VlProcessor", "<|image_pad|>", ()),
}
TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


def _tokenizer():
    tokenizer = build_tokenizer()
    more = ["<|imgpad|>", "<|audio_comp_pad|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": more}, replace_extra_special_tokens=False)
    for name, token in TOKENS.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def _processor(family, backend):
    name, _, more = FAMILIES[family]
    parts = {"image_processor": backend(patch_size=16 if family == "qwen3_vl" else 14), "tokenizer": _tokenizer()}
    if family != "colqwen2":
        parts["video_processor"] = Qwen2VLVideoProcessor()
    parts |= {part: transformers.WhisperFeatureExtractor() for part in more}
    return getattr(transformers, name)(**parts)


def _outputs(family):
    token = FAMILIES[family][1]
    text = {"text": [f"{token}{token}Hi"]} if token else {}
    found = {}
    for backend in (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil):
        processor = _processor(family, backend)
        inputs = processor(images=photos(), return_tensors="pt", **text)
        owned = processor.image_processor(photos(), return_tensors="pt")
        assert len(owned["pixel_values"]) == int(owned["image_grid_thw"].prod(-1).sum())
        found[backend.__name__] = digest({"inputs": inputs, "owned": owned})
    return found


def outputs():
    return {family: _outputs(family) for family in FAMILIES}
