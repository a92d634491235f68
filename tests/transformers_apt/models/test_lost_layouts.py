"""Programs that hand on pixels and grid but not the layout, at every entry that upstream lets them call."""

import inspect
import warnings

import pytest
import torch

from apt_code import InvalidLayoutError
from tests.transformers_apt.models.references import VISUAL
from transformers_apt.models.upstream import CACHE_NAMES, cache_in

pytestmark = pytest.mark.every_family

LOST = r"image_grid_thw .*there is no image_patch_layout"
HELP = ("transformers-apt", "patch_selection_method='off'", "TRANSFORMERS_APT=0")

ENTRIES = {
    "the tower": lambda model, x: model.model.visual(x["pixel_values"], grid_thw=x["image_grid_thw"]),
    "the tower, by position": lambda model, x: model.model.visual(x["pixel_values"], x["image_grid_thw"]),
    "the model's features": lambda model, x: model.model.get_image_features(x["pixel_values"], x["image_grid_thw"]),
    "the features": lambda model, x: model.get_image_features(x["pixel_values"], x["image_grid_thw"]),
    "video features": lambda model, x: model.get_video_features(x["pixel_values"], x["image_grid_thw"]),
    "positions": lambda model, x: model.model.get_rope_index(
        x["input_ids"], x["mm_token_type_ids"], x["image_grid_thw"], attention_mask=x["attention_mask"]
    ),
    "positions of a grid in a list": lambda model, x: model.model.get_rope_index(
        x["input_ids"], x["mm_token_type_ids"], list(x["image_grid_thw"])
    ),
    "forward": lambda model, x: model(**x),
    "the model's forward": lambda model, x: model.model(**x),
    "generate": lambda model, x: model.generate(**x, max_new_tokens=2),
}


@pytest.mark.parametrize("lost", [VISUAL[2:], VISUAL[2:3]], ids=["both", "the layout"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_says_what_was_lost(entry, lost, model, inputs):
    without = {name: value for name, value in inputs.items() if name not in lost}
    words = LOST if len(lost) == 2 else f"{LOST}|image_patch_counts without image_patch_layout"
    with pytest.raises(InvalidLayoutError, match=words) as refusal, torch.no_grad():
        ENTRIES[entry](model, without)
    assert all(words in str(refusal.value) for words in HELP)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_works_with_upstreams_patches(entry, model, processor, prompt, half_plain):
    off = {"patch_selection_method": "off"}
    with torch.no_grad():
        ENTRIES[entry](
            model, dict(processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=off))
        )


def test_positions_of_more_grids_than_the_prompt_shows_are_upstreams(model, processor, prompt, half_plain, upstream):
    """As in a chat whose earlier images are in the cache; and an error of upstream's own stays its own."""
    off = {"patch_selection_method": "off"}
    x = processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=off)
    grids = torch.cat([x["image_grid_thw"]] * 2)
    with upstream():
        expected = model.model.get_rope_index(x["input_ids"], x["mm_token_type_ids"], grids)
    found = model.model.get_rope_index(x["input_ids"], x["mm_token_type_ids"], grids)
    assert all(map(torch.equal, found, expected))
    with pytest.raises(Exception) as refusal:
        model.model.get_rope_index(x["input_ids"], x["mm_token_type_ids"][:, :-1], x["image_grid_thw"])
    assert not isinstance(refusal.value, InvalidLayoutError)
    with upstream(), pytest.raises(Exception) as expected:
        model.model.get_rope_index(x["input_ids"], None, x["image_grid_thw"])
    with pytest.raises(type(expected.value)) as refusal:
        model.model.get_rope_index(x["input_ids"], None, x["image_grid_thw"])
    assert str(refusal.value) == str(expected.value)


def test_trls_hint_still_finds_upstreams_words(model, inputs):
    """TRL looks for them in a ValueError, to say that max_length cut an image's placeholders off."""
    cut = {name: value for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        cut[name] = cut[name][:, :12]
    with pytest.raises(ValueError, match=r"Image features and image tokens do not match, tokens: \d+, features: \d+"):
        model(**cut)


def spells_out(forward):
    def replaced(
        self, input_ids=None, attention_mask=None, position_ids=None, pixel_values=None, image_grid_thw=None,
        mm_token_type_ids=None, **kwargs,
    ):  # fmt: skip
        return forward(
            self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            pixel_values=pixel_values, image_grid_thw=image_grid_thw, mm_token_type_ids=mm_token_type_ids, **kwargs,
        )  # fmt: skip

    return replaced


def test_generate_works_where_somebody_replaced_forward(model, inputs, monkeypatch):
    """As Liger Kernel does: its forward names upstream's arguments and hands the rest on."""
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    monkeypatch.setattr(type(model), "forward", spells_out(type(model).forward))
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    with pytest.raises(ValueError, match="mood"):
        model.generate(**inputs, mood="wild", max_new_tokens=2)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_forward_takes_the_cache_under_both_names(name, model, inputs):
    """In the middle of a generation, by hand: the release's own name, and the one before, which it still takes."""
    own = next(name for name in CACHE_NAMES if name in inspect.signature(type(model).forward).parameters)
    if CACHE_NAMES.index(name) < CACHE_NAMES.index(own):
        pytest.skip(f"this transformers has no {name!r} yet")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        for whole in (model, model.model):
            first = whole(**inputs, use_cache=True)
            token = ids[:, inputs["input_ids"].shape[1] :][:, :1]
            given = {"input_ids": token, name: cache_in(first), "image_grid_thw": inputs["image_grid_thw"]}
            given |= {"image_patch_layout": inputs["image_patch_layout"], "mm_token_type_ids": torch.zeros_like(token)}
            second = whole(**given)
            logits = second.logits if whole is model else model.lm_head(second.last_hidden_state)
            assert int(logits[0, -1].argmax()) == int(ids[0, inputs["input_ids"].shape[1] + 1])
