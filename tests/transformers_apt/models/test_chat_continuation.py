"""Going on with a chat, on the cache of its first turns, when the next turn brings a new image.

What upstream's `generate` supports there:

- the ids of the new turn alone, with its own image: every position follows the text's rule (all of them + the rope
  delta), for the image's tokens too;
- since 5.23, the ids of the whole chat, the grids (here: and layouts) of all images, and the new image's features,
  encoded beforehand: positions as if the chat were read from the start.
"""

import pytest
import torch
from packaging.version import Version
from transformers import __version__ as transformers_version

from tests.transformers_apt.models.references import SELECTIONS, visual

pytestmark = pytest.mark.every_family

SETTINGS = {
    "off": {"patch_selection_method": "off"},
    "everything": {"patch_selection_method": "budget", "alpha": 1.0},
    "budget": {"patch_selection_method": "budget", "alpha": 0.3},
    "dropping": SELECTIONS["dropping"],
}
NEXT_TURN = "<|im_end|>\n<|im_start|>user\nAnd <|vision_start|><|image_pad|><|vision_end|>?<|im_start|>assistant\n"
computes_new_positions = pytest.mark.skipif(
    Version(transformers_version) < Version("5.23"), reason="this transformers keeps the positions' rule of the text"
)


@pytest.fixture
def chat(load_model, processor, prompt, half_plain, photos):
    """`chat(settings)`: a model after its first answer, the cache, and the ids so far, with those of the next turn."""

    def start(settings):
        model = load_model()
        first = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=settings)
        second = processor(images=photos[1], text=NEXT_TURN, return_tensors="pt", images_kwargs=settings)
        answered = model.generate(**first, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
        answer = answered.sequences[:, first["input_ids"].shape[1] :]
        no_image = torch.zeros_like(answer, dtype=first["mm_token_type_ids"].dtype)
        ids = torch.cat([answered.sequences, second["input_ids"]], dim=1)
        whole = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": torch.cat([first["mm_token_type_ids"], no_image, second["mm_token_type_ids"]], dim=1),
            **{name: torch.cat([value, visual(second)[name]]) for name, value in visual(first).items()},
        }
        return model, answered.past_key_values, whole, second

    return start


def go_on(model, **inputs):
    """The new tokens, and the position ids of everything that was read for them."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"][-3:].expand(3, -1, -1)), with_kwargs=True
    )
    ids = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    hook.remove()
    return ids[:, -5:], torch.cat(seen, dim=-1)


@pytest.mark.parametrize("method", SETTINGS)
def test_from_the_start_without_a_cache(method, chat):
    """The second turn of a chat with two images, read anew: the reference for what follows."""
    model, _, whole, _ = chat(SETTINGS[method])
    with torch.no_grad():
        logits = model(**whole).logits[:, -1]
    assert torch.equal(go_on(model, **whole)[0][:, 0], logits.argmax(-1))


@pytest.mark.parametrize("method", SETTINGS)
def test_the_new_turn_alone(method, chat):
    model, cache, whole, second = chat(SETTINGS[method])
    past, delta = cache.get_seq_length(), int(model.model.rope_deltas)
    _, positions = go_on(model, **{**second, "attention_mask": whole["attention_mask"]}, past_key_values=cache)
    read = second["input_ids"].shape[1] + 4
    # the answer's last token is not in the cache and not in the new ids, so upstream numbers from the cache's end + 1
    expected = torch.arange(past + 1, past + 1 + read) + delta
    assert positions.tolist() == expected.expand(3, 1, -1).tolist()


def test_the_new_turn_alone_is_upstreams_when_everything_is_kept(chat, upstream):
    def answer(settings):
        model, cache, whole, second = chat(settings)
        return go_on(model, **{**second, "attention_mask": whole["attention_mask"]}, past_key_values=cache)

    found = answer(SETTINGS["everything"])
    for expected, value in zip(answer(SETTINGS["off"]), found, strict=True):
        assert torch.equal(expected, value)


@computes_new_positions
@pytest.mark.parametrize("method", SETTINGS)
def test_the_whole_chat_and_the_new_images_features(method, chat):
    model, cache, whole, second = chat(SETTINGS[method])
    expected, all_positions = go_on(model, **whole)
    model, cache, whole, second = chat(SETTINGS[method])
    past = cache.get_seq_length()
    with torch.no_grad():
        encoded = model.get_image_features(**visual(second), return_dict=True)
    rest = {name: value for name, value in whole.items() if name != "pixel_values"}
    found, positions = go_on(model, **rest, mm_encoder_outputs={"image": encoded}, past_key_values=cache)
    assert torch.equal(found, expected)
    assert torch.equal(positions, all_positions[..., past:])


@pytest.mark.parametrize("method", SETTINGS)
def test_a_next_turn_of_text(method, chat, processor):
    """Nothing new to see: the whole chat's ids and the cache are enough, and say what reading it anew says."""
    model, cache, whole, second = chat(SETTINGS[method])
    text = processor(text=["<|im_end|>\n<|im_start|>user\nWhy?<|im_start|>assistant\n"], return_tensors="pt")
    first_turn = whole["input_ids"].shape[1] - second["input_ids"].shape[1]
    longer = {
        name: torch.cat([whole[name][:, :first_turn], text[name].to(whole[name].dtype)], dim=1)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    first_image = {name: value[: len(value) - len(second[name])] for name, value in visual(whole).items()}
    found, positions = go_on(model, **longer, past_key_values=cache)
    expected, all_positions = go_on(model, **longer, **first_image)
    assert torch.equal(found, expected)
    assert torch.equal(positions, all_positions[..., -positions.shape[-1] :])


@pytest.mark.parametrize("method", ["off", "budget", "dropping"])
def test_forward_with_a_cache_and_a_new_image(method, chat):
    """Decoding by hand: `forward` on a cache numbers new tokens by the text's rule, as upstream does."""
    model, cache, _, second = chat(SETTINGS[method])
    past, delta = cache.get_seq_length(), int(model.model.rope_deltas)
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    inputs = {name: value for name, value in second.items() if name != "attention_mask"}
    with torch.no_grad():
        logits = model(**inputs, past_key_values=cache).logits
    expected = torch.arange(past, past + second["input_ids"].shape[1]) + delta
    assert seen[0].tolist() == expected.expand(3, 1, -1).tolist()
    assert bool(torch.isfinite(logits).all()) and int(model.model.rope_deltas) == delta
