"""The tiny checkpoints are real Qwen2-VL checkpoints: they load through Auto classes and behave as upstream's do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from transformers_apt.embedded.tiny_checkpoint import (
    SPECIAL_TOKENS,
    build_config,
    build_model,
    build_processor,
    build_tokenizer,
    save_checkpoint,
)

WORDS = ("red", " red", "green", " green", "What", " is", "left", "yellow", " the")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), "test", seed=3, words=WORDS)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


def _image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _messages(*kinds: str) -> list[dict]:
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": "What is 407?"}]
    return [{"role": "user", "content": content}]


@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips(text):
    import unicodedata

    tokenizer = _TOKENIZER
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


_TOKENIZER = build_tokenizer(WORDS)


@pytest.mark.parametrize("prefix", ["", " ", "code", "x-"])
def test_every_digit_is_one_token(prefix):
    extra = len(_TOKENIZER.encode(prefix + "40718")) - len(_TOKENIZER.encode(prefix))
    assert extra == 5
    assert len({_TOKENIZER.encode(str(digit))[0] for digit in range(10)}) == 10


def test_words_and_special_tokens_are_one_token_after_reload(processor):
    for text in (*WORDS, *SPECIAL_TOKENS):
        assert len(processor.tokenizer.encode(text)) == 1, text
    assert processor.tokenizer.pad_token == "<|endoftext|>"
    assert processor.tokenizer.eos_token == "<|im_end|>"
    assert processor.tokenizer.decode(processor.tokenizer.encode("<|im_end|>a"), skip_special_tokens=True) == "a"


def test_word_that_cannot_be_one_token_is_refused():
    with pytest.raises(ValueError, match="expected one token"):
        build_tokenizer(["two words"])


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        build_config("huge")


def test_chat_template_has_the_system_turn_the_vision_marks_and_the_open_turn(processor):
    text = processor.apply_chat_template(_messages("image", "video"), add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>"
        "What is 407?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_template_keeps_a_given_system_turn_strings_and_numbers(processor):
    conversation = [{"role": "system", "content": "Be brief."}, *_messages("image"), *_messages("image")]
    text = processor.apply_chat_template(conversation, add_vision_id=True)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nPicture 1: <|vision_start|>")
    assert "Picture 2: <|vision_start|>" in text
    assert text.endswith("<|im_end|>\n")


def test_auto_classes_load_qwen2_vl(processor, model):
    assert type(processor) is Qwen2VLProcessor
    assert type(model) is Qwen2VLForConditionalGeneration
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>"]
    )


def test_generate_from_images_video_and_text(processor, model):
    text = processor.apply_chat_template(_messages("image", "image", "video"), add_generation_prompt=True)
    video = np.random.default_rng(1).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    inputs = processor(text=[text], images=[_image(56, 84), _image(112, 56)], videos=[video], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * 3 + 4 * 2
    out = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert out.shape == (1, inputs["input_ids"].shape[1] + 4)


def test_image_changes_the_answer_logits(processor, model):
    text = processor.apply_chat_template(_messages("image"), add_generation_prompt=True)
    logits = []
    for image in (_image(84, 84), Image.new("RGB", (84, 84), "red")):
        with torch.no_grad():
            logits.append(model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1])
    assert not torch.allclose(logits[0], logits[1])


def test_weights_follow_the_seed_and_leave_the_global_generator_alone(folder, model):
    config = build_config("test", build_tokenizer(WORDS))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again, other = build_model(config, seed=3), build_model(config, seed=4)
    assert torch.equal(torch.rand(3), expected)
    for (name, a), b, c in zip(model.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if a.dim() == 2:
            assert not torch.equal(b, c), name


@pytest.mark.parametrize(("size", "low", "high"), [("test", 50_000, 400_000), ("demo", 1_000_000, 5_000_000)])
def test_sizes(size, low, high):
    assert low < build_model(build_config(size)).num_parameters() < high


def test_default_processor_has_upstream_pixels():
    from transformers import Qwen2VLImageProcessor

    ours, theirs = build_processor().image_processor.to_dict(), Qwen2VLImageProcessor().to_dict()
    assert ours == theirs
