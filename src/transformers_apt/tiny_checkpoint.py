"""Builds, in code, complete Qwen2-VL checkpoint folders of a few thousand to a few million parameters.

A folder written by `save_checkpoint` is a real Qwen2-VL checkpoint: tokenizer, chat template, image and video
processor, config, generation config and safetensors weights. `AutoProcessor` and `AutoModelForImageTextToText` load it
without any help of this module. The weights are random, drawn from a seed: `test` is what tests run on, `demo` is the
architecture the quality benchmark trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

Size = Literal["test", "demo"]

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
#: Qwen2-VL's special tokens, in Qwen2-VL's order of ids.
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

#: Words of the chat template, one token each: an empty prompt stays short. A leading space belongs to the word.
CHAT_WORDS = ("system", "user", "assistant", "You", " are", " a", " helpful", " assistant")

#: Behaves as Qwen2-VL's template: a system turn unless there is one, image and video placeholders inside their vision
#: marks in the order of the content, numbered on demand by `add_vision_id`, an open assistant turn on demand.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' + seen.images|string + ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' + seen.videos|string + ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_VISION: dict[str, dict[str, int]] = {
    "test": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "demo": {"embed_dim": 128, "depth": 4, "num_heads": 2},
}
_TEXT: dict[str, dict[str, Any]] = {
    "test": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "demo": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}


def _mrope_section(text: dict[str, Any]) -> list[int]:
    """Rotary frequencies per (temporal, height, width), in the proportions of Qwen2-VL's 16, 24, 24."""
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    spatial = half * 3 // 8
    return [half - 2 * spatial, spatial, spatial]


def _check_size(size: str) -> None:
    if size not in get_args(Size):
        raise ValueError(f"size is {size!r}, expected one of {list(get_args(Size))}: pass size='test' or size='demo'")


def _merge_table(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE in which every byte is a token and so is each of `words`.

    A word is merged from left to right, so its prefixes become tokens too. Words with a leading space come first: the
    space occurs once in a pre-token, at its front, so their chains of merges cannot get in each other's way.
    """
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in sorted(set(words), key=lambda word: (not word.startswith(" "), -len(word), word)):
        symbols = split.pre_tokenize_str(word)[0][0]
        for end in range(1, len(symbols)):
            pair = (symbols[:end], symbols[end])
            if symbols[: end + 1] not in vocab:
                vocab[symbols[: end + 1]] = len(vocab)
                merges.append(pair)
    return vocab, merges


def build_tokenizer(words: Sequence[str] = ()) -> Qwen2Tokenizer:
    """A small `Qwen2Tokenizer`: 256 bytes, the chat template's words, `words`, and Qwen2-VL's special tokens.

    Any text can be encoded, because bytes are the alphabet; decoding gives the text back (in Unicode's NFC form, as
    with Qwen2-VL's own tokenizer). A digit is always one token.

    Args:
        words: Strings that shall be one token each, for example `"red"` and `" red"`. They may hold letters and one
            leading space only, because Qwen2 splits the text at everything else before it merges.
    """
    from transformers import Qwen2Tokenizer

    vocab, merges = _merge_table((*CHAT_WORDS, *words))
    tokenizer = Qwen2Tokenizer(
        vocab=vocab | {token: len(vocab) + index for index, token in enumerate(SPECIAL_TOKENS)},
        merges=merges,
        unk_token=None,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END_OF_TEXT, END_OF_TURN)],
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
    for word in words:
        if len(tokenizer.encode(word)) != 1:
            raise ValueError(
                f"the word {word!r} becomes {tokenizer.tokenize(word)}, expected one token: use letters with at most "
                "one leading space, and drop words whose merges collide with it"
            )
    return tokenizer


def build_processor(words: Sequence[str] = ()) -> Qwen2VLProcessor:
    """Qwen2-VL's processor with upstream's default image and video processor around `build_tokenizer(words)`."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=build_tokenizer(words),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(size: Size = "test", tokenizer: Qwen2Tokenizer | None = None) -> Qwen2VLConfig:
    """The config of a `test` (one forward takes milliseconds) or `demo` (a few million parameters) checkpoint.

    Args:
        size: `"test"` or `"demo"`.
        tokenizer: The tokenizer whose vocabulary and token ids the config names; `build_tokenizer()` by default.
    """
    from transformers import Qwen2VLConfig

    _check_size(size)
    tokenizer = tokenizer if tokenizer is not None else build_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = _TEXT[size] | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": _mrope_section(_TEXT[size]),
        },
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[END_OF_TURN],
        "pad_token_id": ids[END_OF_TEXT],
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=_VISION[size] | {"hidden_size": text["hidden_size"]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(config: Qwen2VLConfig, seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """A randomly initialised model in float32; the same seed gives the same weights. Global RNG state is restored."""
    import torch
    from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
    text = config.text_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.pad_token_id],
        pad_token_id=text.pad_token_id,
    )
    return model.eval()


def save_checkpoint(folder: str | Path, size: Size = "test", seed: int = 0, words: Sequence[str] = ()) -> Path:
    """Writes a complete Qwen2-VL checkpoint with random weights and returns its folder.

    Args:
        folder: Where to write; made if missing.
        size: `"test"` or `"demo"`.
        seed: Seed of the weights.
        words: Words that become one token each, see `build_tokenizer`.
    """
    folder = Path(folder)
    processor = build_processor(words)
    model = build_model(build_config(size, processor.tokenizer), seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


__all__ = [
    "CHAT_TEMPLATE",
    "SPECIAL_TOKENS",
    "Size",
    "build_config",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "save_checkpoint",
]
