"""Builds, in code, complete Qwen-VL checkpoint folders of a few thousand to a few million parameters.

A folder written by `save_checkpoint` is a real checkpoint of its family: tokenizer, chat template, image and video
processor, config, generation config and safetensors weights. `AutoProcessor` and `AutoModelForImageTextToText` load it
without any help of this module. The weights are random, drawn from a seed: `test` is what tests run on, `demo` (of
Qwen2-VL only) is the architecture the quality benchmark trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin, Qwen2Tokenizer

Size = Literal["test", "demo"]
Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]

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


_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
_HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
_HALF = [0.5, 0.5, 0.5]
_LATER_VISION = {"hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 64}
_QWEN3_VISION = _LATER_VISION | {"num_position_embeddings": 144}  # a table of 12 × 12 positions


@dataclass(frozen=True)
class _Kind:
    """A family's names in transformers, and what its config says beside Qwen2-VL's."""

    name: str
    processor: str
    video: str
    vision: dict[str, Any]
    text: dict[str, Any]
    rope: dict[str, Any]
    patch_size: int = 16


_KINDS: dict[str, _Kind] = {
    "qwen2_vl": _Kind("Qwen2VL", "Qwen2VLProcessor", "Qwen2VLVideoProcessor", _VISION["test"], {}, {}, 14),
    "qwen2_5_vl": _Kind(
        "Qwen2_5_VL",
        "Qwen2_5_VLProcessor",
        "Qwen2VLVideoProcessor",
        _LATER_VISION | {"depth": 3, "fullatt_block_indexes": [1], "window_size": 112},
        {},
        {},
        14,
    ),
    "qwen3_vl": _Kind(
        "Qwen3VL",
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        _QWEN3_VISION | {"deepstack_visual_indexes": [0]},
        {"head_dim": 32},
        {},
    ),
    "qwen3_vl_moe": _Kind(
        "Qwen3VLMoe",
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        _QWEN3_VISION | {"deepstack_visual_indexes": [0]},
        _MOE | {"head_dim": 32},
        {},
    ),
    "qwen3_5": _Kind(
        "Qwen3_5",
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        _QWEN3_VISION,
        _HYBRID | {"head_dim": 32},
        {"partial_rotary_factor": 1.0},
    ),
    "qwen3_5_moe": _Kind(
        "Qwen3_5Moe",
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        _QWEN3_VISION,
        _HYBRID | _MOE | {"head_dim": 32},
        {"partial_rotary_factor": 1.0},
    ),
}


def _mrope_section(text: dict[str, Any]) -> list[int]:
    """Rotary frequencies per (temporal, height, width), in the proportions of Qwen2-VL's 16, 24, 24."""
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    spatial = half * 3 // 8
    return [half - 2 * spatial, spatial, spatial]


def _check_size(size: str, family: str = "qwen2_vl") -> None:
    if size not in get_args(Size):
        raise ValueError(f"size is {size!r}, expected one of {list(get_args(Size))}: pass size='test' or size='demo'")
    if family not in _KINDS:
        raise ValueError(f"family is {family!r}, expected one of {list(_KINDS)}")
    if size == "demo" and family != "qwen2_vl":
        raise ValueError(f"size='demo' with family={family!r}: expected 'qwen2_vl'; pass size='test'")


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


def build_processor(words: Sequence[str] = (), family: Family = "qwen2_vl") -> ProcessorMixin:
    """A family's processor with upstream's default image and video processor around `build_tokenizer(words)`.

    From Qwen3-VL on, patches have 16 px and pixels a mean of 0.5, as in the released checkpoints.
    """
    import transformers

    _check_size("test", family)
    kind = _KINDS[family]
    own = {} if kind.patch_size == 14 else {"patch_size": kind.patch_size, "image_mean": _HALF, "image_std": _HALF}
    return getattr(transformers, kind.processor)(
        image_processor=transformers.Qwen2VLImageProcessor(**own),
        tokenizer=build_tokenizer(words),
        video_processor=getattr(transformers, kind.video)(),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(
    size: Size = "test", tokenizer: Qwen2Tokenizer | None = None, family: Family = "qwen2_vl"
) -> PreTrainedConfig:
    """The config of a `test` (one forward takes milliseconds) or `demo` (a few million parameters) checkpoint.

    Args:
        size: `"test"` or `"demo"`.
        tokenizer: The tokenizer whose vocabulary and token ids the config names; `build_tokenizer()` by default.
        family: `"demo"` exists of Qwen2-VL only.
    """
    import transformers

    _check_size(size, family)
    kind = _KINDS[family]
    tokenizer = tokenizer if tokenizer is not None else build_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = _TEXT[size] | kind.text
    text |= {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": _mrope_section(_TEXT[size]),
            **kind.rope,
        },
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[END_OF_TURN],
        "pad_token_id": ids[END_OF_TEXT],
    }
    if family == "qwen2_vl":
        vision = _VISION[size] | {"hidden_size": text["hidden_size"]}
    else:
        vision = kind.vision | {"out_hidden_size": text["hidden_size"], "patch_size": kind.patch_size}
    return getattr(transformers, f"{kind.name}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A randomly initialised model in float32; the same seed gives the same weights. Global RNG state is restored."""
    import torch
    import transformers

    (kind,) = (kind for kind in _KINDS.values() if type(config).__name__ == f"{kind.name}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind.name}ForConditionalGeneration")(config)
    text = config.text_config
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.pad_token_id],
        pad_token_id=text.pad_token_id,
    )
    return model.eval()


def save_checkpoint(
    folder: str | Path,
    size: Size = "test",
    seed: int = 0,
    words: Sequence[str] = (),
    family: Family = "qwen2_vl",
) -> Path:
    """Writes a complete checkpoint with random weights and returns its folder.

    Args:
        folder: Where to write; made if missing.
        size: `"test"` or `"demo"`.
        seed: Seed of the weights.
        words: Words that become one token each, see `build_tokenizer`.
        family: Which model family; `"demo"` exists of Qwen2-VL only.
    """
    folder = Path(folder)
    _check_size(size, family)
    processor = build_processor(words, family)
    model = build_model(build_config(size, processor.tokenizer, family), seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


__all__ = [
    "CHAT_TEMPLATE",
    "SPECIAL_TOKENS",
    "Family",
    "Size",
    "build_config",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "save_checkpoint",
]
