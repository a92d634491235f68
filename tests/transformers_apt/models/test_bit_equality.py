"""`off`, and `budget` with everything kept, give upstream's own numbers to the last bit."""

import itertools

import pytest
import torch
from transformers import AutoProcessor, Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

pytestmark = pytest.mark.every_family(moe=True)

BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
EQUAL_TO_UPSTREAM = (
    {"patch_selection_method": "off"},
    {"patch_selection_method": "off", "alpha": 0.1},
    {"patch_selection_method": "budget", "alpha": 1.0},
    {"patch_selection_method": "budget", "alpha": 1, "importance_method": "upsample_mse"},
)


@pytest.fixture(scope="module")
def preprocess(folder, photos):
    """A padded batch of two prompts: one with one image, one with two images of other sizes and a longer text."""

    def preprocess(backend, **call):
        processor = AutoProcessor.from_pretrained(folder)
        processor.image_processor = backend.from_pretrained(folder)
        texts = [
            "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * images + text
            for images, text in ((1, "Hi"), (2, "What is the difference?"))
        ]
        return processor(images=photos, text=texts, return_tensors="pt", padding=True, **call)

    return preprocess


@pytest.fixture(scope="module")
def answer(load_model):
    """Everything the model says about a batch."""

    def answer(batch, **options):
        model = load_model(**options)
        visual = {name: value for name, value in batch.items() if name not in ("input_ids", "mm_token_type_ids")}
        visual.pop("pixel_values")
        position_ids, deltas = model.model.get_rope_index(
            input_ids=batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"], **visual
        )
        with torch.no_grad():
            features = model.get_image_features(
                **{name: value for name, value in batch.items() if name.startswith(("pixel", "image"))},
                return_dict=True,
            )
            logits = model(**batch).logits
            generated = model.generate(**batch, max_new_tokens=8, do_sample=False)
        return {
            "position_ids": position_ids,
            "deltas": deltas,
            "tower": features.last_hidden_state,
            "features": torch.cat(features.pooler_output),
            "logits": logits,
            "generated": generated,
        }

    return answer


@pytest.fixture(scope="module")
def reference(upstream, preprocess, answer):
    """Upstream's inputs and answers for one backend, dtype and attention; each is worked out once."""
    known = {}

    def reference(backend, **options):
        key = (backend, *sorted(options.items(), key=str))
        if key not in known:
            with upstream():
                batch = preprocess(backend)
                known[key] = (batch, answer(batch, **options))
        return known[key]

    return reference


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def without_layout(batch):
    return {name: value for name, value in batch.items() if name not in ("image_patch_layout", "image_patch_counts")}


@pytest.mark.parametrize("settings", EQUAL_TO_UPSTREAM, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_and_answers(backend, settings, preprocess, answer, reference):
    batch, answers = reference(backend)
    found = preprocess(backend, images_kwargs=settings)
    assert ("image_patch_layout" in found) == (settings["patch_selection_method"] != "off")
    assert bool((batch["attention_mask"] == 0).any()), "the batch is meant to have padding"
    assert_equal(without_layout(found), dict(batch))
    assert_equal(answer(found), answers)


@pytest.mark.parametrize(
    ("attention", "dtype"),
    [*itertools.product(("eager", "sdpa"), (torch.float32, torch.bfloat16)), ("sdpa", torch.half)],
)
@pytest.mark.parametrize("settings", [EQUAL_TO_UPSTREAM[0], EQUAL_TO_UPSTREAM[2]], ids=str)
def test_attention_and_precision(attention, dtype, settings, preprocess, answer, reference):
    options = {"attn_implementation": attention, "dtype": dtype}
    _, answers = reference(Qwen2VLImageProcessor, **options)
    assert answers["logits"].dtype == dtype
    assert_equal(answer(preprocess(Qwen2VLImageProcessor, images_kwargs=settings), **options), answers)


def test_the_reference_is_not_blind(preprocess, answer, reference):
    """The comparison above would notice a model that reads coarse patches."""
    batch, answers = reference(Qwen2VLImageProcessor)
    lossy = preprocess(Qwen2VLImageProcessor, images_kwargs={"patch_selection_method": "budget", "alpha": 0.5})
    assert len(lossy["pixel_values"]) < len(batch["pixel_values"])
    assert not torch.equal(answer(lossy)["generated"][:, -8:], answers["generated"][:, -8:])


def test_text_alone(processor, load_model, upstream):
    batch = processor(text=["Only words."], return_tensors="pt")
    with upstream(), torch.no_grad():
        expected = load_model()(**batch).logits
    with torch.no_grad():
        assert torch.equal(load_model()(**batch).logits, expected)
