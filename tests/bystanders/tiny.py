"""What every case is made of: photos, tiny random models, and digests of all that is seen.

transformers is imported inside the functions: a case imports its program first, as its users do.
"""

import hashlib
import tempfile
from pathlib import Path

import torch
from PIL import Image
from skimage import data

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def photos(count=2):
    """Photos with plain regions, so that adaptive patches would change them."""
    full = (data.rocket(), data.moon(), data.coffee())
    sizes = ((280, 196), (196, 224), (224, 168))
    pairs = list(zip(full, sizes, strict=True))[:count]
    return [Image.fromarray(photo).convert("RGB").resize(size) for photo, size in pairs]


def digest(value):
    """Something that JSON can hold and that is equal where, and only where, the value is equal to the bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(raw).hexdigest()[:16]}"
    if isinstance(value, Image.Image):
        return f"{value.size} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(name): digest(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [digest(part) for part in value]
    if isinstance(value, float):
        return value.hex()
    return value if isinstance(value, (str, int, bool, type(None))) else repr(value)


def build(family="qwen2_vl"):
    """`(processor, model)` of a family, with weights spread so that pixels decide the tokens."""
    import transformers

    from tests.transformers_apt.models import family_models
    from transformers_apt.embedded.tiny_checkpoint import CHAT_TEMPLATE, build_config, build_model, build_processor

    if family == "qwen2_vl":
        processor = build_processor()
        model = build_model(build_config("test", processor.tokenizer))
    else:
        from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

        torch.manual_seed(0)
        processor, model_class, config = getattr(family_models, family)(build_tokenizer())
        processor.chat_template = CHAT_TEMPLATE
        model = model_class(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
        # a random model must not answer with placeholders: upstream would want an image for each
        model.lm_head.weight[[model.config.image_token_id, model.config.video_token_id]] = 0
    return processor, model.eval()


def ask_for(processor, settings):
    """Settings as attributes of a processor's image processor."""
    for name, value in (settings or {}).items():
        setattr(processor.image_processor, name, value)


def save(family="qwen2_vl"):
    """A checkpoint folder; `matrix.run` removes it."""
    processor, model = build(family)
    folder = Path(tempfile.mkdtemp(prefix="bystander-"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tensors(named):
    return digest({name: value for name, value in named.items() if isinstance(value, torch.Tensor)})


def watch(model):
    """A list that will hold digests of the tensors of each of the model's calls."""
    seen = []
    model.register_forward_pre_hook(lambda _, arguments, named: seen.append(_tensors(named)), with_kwargs=True)
    return seen


def watch_generate(model):
    """The same of the calls of `generate`, which encodes images before it calls the model."""
    seen, generate = [], model.generate

    def watched(**inputs):
        seen.append(_tensors(inputs))
        return generate(**inputs)

    model.generate = watched
    return seen


def weights(model):
    return digest(torch.cat([weight.detach().float().flatten() for weight in model.parameters()]))
