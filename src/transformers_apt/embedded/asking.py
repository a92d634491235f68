"""Asking a checkpoint about a picture: the embedded one, or any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from transformers_apt.embedded import demo_model_path


def load_checkpoint(name: str | None, device: str, dtype: str) -> tuple[Any, Any]:
    """`(model, processor)` of a folder or hub id; without a name, of the embedded checkpoint.

    A branch that lies beside a checkpoint in its folder is put on the model.

    Raises:
        ValueError: a path where nothing is, or another family's. OSError: not a checkpoint, or not to be had from the
            hub.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    from transformers_apt import training
    from transformers_apt.engine.patching import status
    from transformers_apt.models.families import SUPPORTED, no_such_checkpoint
    from transformers_apt.models.reach import is_supported
    from transformers_apt.training.branch import CONFIG

    if name is None:
        disable_progress_bar()  # a second's work
        name = str(demo_model_path())
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    problem = no_such_checkpoint(name)
    if problem:
        raise ValueError(problem)
    processor = AutoProcessor.from_pretrained(name)
    if not is_supported(processor):
        raise ValueError(
            f"{name} is for {type(processor).__name__}: expected a checkpoint of one of the families that read "
            f"adaptive patches, {SUPPORTED}"
        )
    family = AutoConfig.from_pretrained(name).model_type
    why_not = status().families.get(family)
    if why_not is not None:
        raise ValueError(f"{name} is of the family {family}, for which adaptive patches are off here: {why_not}")
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=getattr(torch, dtype))
    if Path(name, training.FOLDER, CONFIG).is_file():
        training.load(model, name, processor)
    return model.to(device).eval(), processor


def default_method(model: Any) -> str:
    """How patches of a checkpoint are selected where nobody says anything."""
    from transformers_apt.engine.patching import BASE
    from transformers_apt.models.settings import DEFAULTS, OFF

    return str(DEFAULTS["patch_selection_method"]) if model.config.model_type == BASE else OFF


def describe_model(name: str | None, model: Any, device: str) -> str:
    """Who answers, in words."""
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    size = f"{millions / 1e3:.1f} billion" if millions >= 1e3 else f"{millions:.1f} million"
    if name is not None:
        return f"{name} ({size} parameters, on {device})"
    return (
        f"the embedded model ({size} parameters, on {device}), trained on drawn scenes: it reads codes and knows "
        "shapes and colours, nothing else. It has practised on coarse patches and on cells left out, which no "
        "released checkpoint has"
    )


def describe_practice(name: str | None) -> str:
    """Who answers, and on what it was trained as far as that is known: to stand beside the answers."""
    return "the embedded model, practised on coarse patches" if name is None else f"{name}, as it is"


def describe_limit(processor: Any, model: Any) -> str:
    """To what a model's own files resize an image at most, and what released checkpoints of its family allow."""
    from transformers_apt.models.families import PUBLISHED, megapixels, series_of

    own, family = processor.image_processor.size["longest_edge"], model.config.model_type
    released = PUBLISHED[family].max_pixels
    more = f"; released {series_of(family)} checkpoints allow {megapixels(released)}" if own < released else ""
    return f"at most {megapixels(own)}, the limit of this model's files{more}"


def answer(
    model: Any, processor: Any, image: Image.Image, prompt: str, settings: dict[str, Any], max_new_tokens: int = 16
) -> str:
    """What the model says to `prompt` about `image` under `settings`, greedily."""
    inputs = preprocess_for(model, processor, image, prompt, settings)
    return decode_answer(model, processor, inputs, max_new_tokens)


def preprocess_for(model: Any, processor: Any, image: Image.Image, prompt: str, settings: dict[str, Any]) -> Any:
    """The model's inputs for a question about a picture, on its device."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=image, text=text, images_kwargs=settings, return_tensors="pt")
    return inputs.to(model.device)


def decode_answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> str:
    """What the model generates from these inputs, greedily."""
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
