"""Generation on mixed-scale patches: every way of decoding tells the same story as one plain forward."""

import pytest
import torch
from packaging.version import Version
from transformers import __version__ as transformers_version
from transformers import pipeline

from tests.transformers_apt.models.references import BUDGET, SELECTIONS, layouts_of, visual

pytestmark = pytest.mark.every_family

TEXT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids")


@pytest.fixture(params=SELECTIONS)
def settings(request):
    return SELECTIONS[request.param]


@pytest.fixture
def batch(settings, processor, prompt, photos, half_plain):
    """Two prompts with one and two images, padded on the left."""
    batch = processor(
        images=[half_plain, photos[2], photos[1]],
        text=[prompt(1), prompt(2, text="What is the difference between the two?")],
        return_tensors="pt",
        padding=True,
        images_kwargs=settings,
    )
    assert bool((batch["attention_mask"] == 0).any())
    assert all(bool(layout.dropped_cells) == ("drop_tolerance" in settings) for layout in layouts_of(batch))
    return batch


@pytest.fixture
def one_image_each(settings, processor, prompt, photos, half_plain):
    """Two padded prompts with one image each: upstream 5.18 mixes up the images of a prompt that it expands."""
    return processor(
        images=[half_plain, photos[1]],
        text=[prompt(), prompt(text="What is the meaning of this?")],
        return_tensors="pt",
        padding=True,
        images_kwargs=settings,
    )


def generate(model, batch, **options):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}
    with torch.no_grad():
        return model.generate(**batch, **options)


def extended(batch, new):
    """The batch with tokens appended, ready for one forward over everything."""
    rows, length = new.shape
    more = {
        "input_ids": new,
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "mm_token_type_ids": torch.zeros(rows, length, dtype=batch["mm_token_type_ids"].dtype),
    }
    return {**batch, **{name: torch.cat([batch[name], part], dim=1) for name, part in more.items()}}


def test_generate_forward_and_teacher_forcing_agree(model, batch):
    """Greedy ids are the argmax of one forward over prompt and answer, and of decoding by hand with a cache."""
    length = batch["input_ids"].shape[1]
    out = generate(model, batch, min_new_tokens=0, return_dict_in_generate=True, output_logits=True)
    new = out.sequences[:, length:]
    with torch.no_grad():
        whole = model(**extended(batch, new[:, :-1])).logits[:, length - 1 :]
        step = model(**batch, use_cache=True)
        by_hand = [step.logits[:, -1]]
        for position in range(new.shape[1] - 1):
            so_far = extended(batch, new[:, : position + 1])["attention_mask"]
            step = model(
                input_ids=new[:, position : position + 1],
                attention_mask=so_far,
                position_ids=(so_far.sum(1, keepdim=True) - 1 + model.model.rope_deltas).expand(3, -1, -1),
                past_key_values=step.past_key_values,
            )
            by_hand.append(step.logits[:, -1])
    generated = torch.stack(out.logits, dim=1)
    torch.testing.assert_close(generated, whole, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.stack(by_hand, dim=1), whole, rtol=1e-3, atol=1e-3)
    assert torch.equal(whole.argmax(-1), new)
    assert len(set(new.flatten().tolist())) > 2, "a model that always says the same proves nothing"


def test_the_layout_matters_to_the_answer(model, inputs):
    """Positions are read: the same pixels placed otherwise give other logits."""
    sizes = inputs["image_patch_layout"][:, 2]
    with torch.no_grad():
        logits = model(**inputs).logits
        shuffled = inputs["pixel_values"].clone()
        big = (sizes > 1).nonzero().flatten()
        shuffled[big] = shuffled[big.flip(0)]
        moved = model(**{**inputs, "pixel_values": shuffled}).logits
    assert not torch.allclose(logits, moved, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"cache_implementation": "dynamic"}, {"num_beams": 1}],
    ids=str,
)
def test_caches_do_not_change_the_answer(options, model, batch):
    # A static cache would make generate compile the decoding on an accelerator; on the CPU it runs as it is.
    assert torch.equal(generate(model, batch, **options), generate(model, batch))


def test_rows_of_a_padded_batch_are_independent(model, processor, prompt, half_plain, batch, settings):
    alone = processor(images=half_plain, text=prompt(1), return_tensors="pt", images_kwargs=settings)
    assert torch.equal(generate(model, alone)[:, -6:], generate(model, batch)[:1, -6:])


@pytest.fixture
def expands_inputs(family):
    if family == "qwen3_5" and Version(transformers_version) < Version("5.23"):
        pytest.skip("this transformers mixes up the sequences of Qwen3.5's hybrid model, also at full resolution")


@pytest.mark.usefixtures("expands_inputs")
def test_beam_search(model, one_image_each):
    """Beams expand the images' features: their scores are the likelihoods that a forward gives."""
    batch = one_image_each
    length = batch["input_ids"].shape[1]

    def likelihood(sequences):
        new = sequences[:, length:]
        with torch.no_grad():
            logits = model(**extended(batch, new[:, :-1])).logits[:, length - 1 :]
        return logits.log_softmax(-1).gather(2, new[..., None]).sum(dim=(1, 2))

    out = generate(model, batch, num_beams=4, return_dict_in_generate=True, output_scores=True, length_penalty=0.0)
    torch.testing.assert_close(likelihood(out.sequences), out.sequences_scores, rtol=1e-3, atol=1e-3)
    several = generate(model, batch, num_beams=4, num_return_sequences=3, length_penalty=0.0)
    assert several.shape[0] == 6 and torch.equal(several[[0, 3]], out.sequences)
    assert not torch.equal(several[0], several[1])


@pytest.mark.usefixtures("expands_inputs")
def test_sampling_several_sequences(model, one_image_each):
    batch = one_image_each

    def sample(seed):
        torch.manual_seed(seed)
        return generate(model, batch, do_sample=True, num_return_sequences=3, temperature=2.0, top_k=0)

    first = sample(0)
    assert first.shape[0] == 6 and torch.equal(first, sample(0)) and not torch.equal(first, sample(1))
    prompts = first[:, : batch["input_ids"].shape[1]]
    assert torch.equal(prompts, batch["input_ids"].repeat_interleave(3, dim=0))
    cold = generate(model, batch, do_sample=True, num_return_sequences=3, temperature=1e-4)
    assert torch.equal(cold, generate(model, batch).repeat_interleave(3, dim=0)), "a cold sample is greedy"


@pytest.mark.skipif(Version(transformers_version) < Version("5.23"), reason="upstream mixes up the images of a prompt")
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "temperature": 1e-4}], ids=str)
def test_expanding_a_prompt_with_two_images(options, model, batch):
    found = generate(model, batch, num_return_sequences=2, **options)
    alone = {
        name: value[1:] if name in TEXT_INPUTS else value[first_image_rows(batch)[name] :]
        for name, value in batch.items()
    }
    assert torch.equal(found[2:], generate(model, alone, num_return_sequences=2, **options))


def first_image_rows(batch):
    """How many rows of each visual input belong to the first image."""
    patches = layouts_of(batch)[0].num_patches
    return {"pixel_values": patches, "image_patch_layout": patches, "image_grid_thw": 1, "image_patch_counts": 1}


def test_hidden_states_and_attentions(load_model, batch):
    model = load_model(attn_implementation="eager")
    length = batch["input_ids"].shape[1]
    out = generate(
        model,
        batch,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
        output_scores=True,
    )
    assert len(out.hidden_states) == len(out.attentions) == len(out.scores) == 6
    with torch.no_grad():
        forward = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(forward.hidden_states) == 3 and forward.hidden_states[0].shape[1] == length
    for generated, expected in zip(out.hidden_states[0], forward.hidden_states, strict=True):
        torch.testing.assert_close(generated, expected)
    for generated, expected in zip(out.attentions[0], forward.attentions, strict=True):
        torch.testing.assert_close(generated, expected)


def test_a_second_prompt_does_not_remember_the_first(load_model, batch, inputs):
    model = load_model()
    generate(model, batch)
    assert torch.equal(generate(model, inputs), generate(load_model(), inputs))
    with torch.no_grad():
        expected = load_model()(**inputs).logits
        generate(model, batch)
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision(dtype, attention, load_model, batch):
    model = load_model(dtype=dtype, attn_implementation=attention)
    with torch.no_grad():
        logits = model(**batch).logits
        exact = load_model()(**batch).logits
    assert logits.dtype == dtype and bool(torch.isfinite(logits).all())
    kept = batch["attention_mask"].bool()
    similar = torch.cosine_similarity(logits[kept].float(), exact[kept], dim=-1)
    assert float(similar.mean()) > 0.97
    assert generate(model, batch).shape[1] == batch["input_ids"].shape[1] + 6


def test_the_models_device_and_dtype_rule(model, inputs):
    """What the README shows: the batch moves as one, and float inputs may be cast with it."""
    moved = inputs.to(model.device, torch.bfloat16)
    assert moved["image_patch_layout"].dtype == torch.int64
    with torch.no_grad():
        assert bool(torch.isfinite(model(**moved).logits).all())


def test_outputs_of_earlier_releases_are_understood(model, processor, prompt, photos, half_plain):
    """They have no counts: every layout tiles its grid."""
    images, text = [half_plain, photos[1]], prompt(2)
    batch = processor(images=images, text=text, return_tensors="pt", images_kwargs=BUDGET)
    earlier = without(batch, "image_patch_counts")
    with torch.no_grad():
        assert torch.equal(model(**earlier).logits, model(**batch).logits)
    assert torch.equal(generate(model, earlier), generate(model, batch))


def test_images_and_a_video(settings, model, processor, prompt, half_plain, photos):
    video = torch.stack([torch.tensor([index * 60.0]).expand(3, 56, 56) for index in range(4)])
    call = {"images": half_plain, "videos": [video], "text": prompt(1, 1), "return_tensors": "pt"}
    batch = processor(**call, images_kwargs=settings)
    length = batch["input_ids"].shape[1]
    new = generate(model, batch)[:, length:]
    with torch.no_grad():
        whole = model(**extended(batch, new[:, :-1])).logits[:, length - 1 :]
        changed = model(**{**batch, "pixel_values_videos": -batch["pixel_values_videos"]}).logits
    assert not torch.allclose(changed[:, -1], whole[:, 0], atol=1e-3), "the video is read"
    assert torch.equal(whole[:, 1:].argmax(-1), new[:, 1:])


@pytest.mark.parametrize("settings", [{"patch_selection_method": "off"}, *SELECTIONS.values()], ids=str)
def test_embeddings_instead_of_ids(settings, model, processor, prompt, half_plain):
    """With `inputs_embeds` upstream finds the placeholders by their embedding; the ids still give the positions."""
    batch = dict(processor(images=half_plain, text=prompt(), return_tensors="pt", images_kwargs=settings))
    with torch.no_grad():
        expected = model(**batch).logits
        ids = batch.pop("input_ids")
        embeds = model.get_input_embeddings()(ids)
        given = {"position_ids": model.model.get_rope_index(ids, **without(batch, "pixel_values"))[0]}
        found = model(inputs_embeds=embeds, **given, **batch).logits
    torch.testing.assert_close(found, expected)
    generated = generate(model, {"input_ids": ids, "inputs_embeds": embeds, **batch})
    assert torch.equal(generated[:, -6:], generate(model, {"input_ids": ids, **batch})[:, -6:])


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


def test_features_encoded_beforehand(model, batch):
    """`mm_encoder_outputs`, upstream's way of encoding images once."""
    expected = generate(model, batch)
    with torch.no_grad():
        logits = model(**batch).logits
        encoded = model.get_image_features(**visual(batch), return_dict=True)
        rest = without(batch, "pixel_values")
        assert torch.equal(model(**rest, mm_encoder_outputs={"image": encoded}).logits, logits)
    assert torch.equal(generate(model, {**rest, "mm_encoder_outputs": {"image": encoded}}), expected)


def test_a_text_prompt_after_an_image_prompt(model, processor, inputs):
    text = processor(text=["Only words."], return_tensors="pt")
    expected = generate(model, text)
    generate(model, inputs)
    assert torch.equal(generate(model, text), expected)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_pipeline(batch_size, folder, model, processor, photos, prompt):
    processor.image_processor.patch_selection_method, processor.image_processor.alpha = "budget", 0.3
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": "What is this?"}]}]
        for photo in photos[:2]
    ]
    out = pipe(text=messages, max_new_tokens=6, do_sample=False, batch_size=batch_size, return_full_text=False)
    for photo, answer in zip(photos, out, strict=False):
        batch = processor(images=photo, text=prompt(), return_tensors="pt")
        assert "image_patch_layout" in batch
        expected = generate(model, batch, min_new_tokens=0)[:, batch["input_ids"].shape[1] :]
        assert answer[0]["generated_text"] == processor.batch_decode(expected, skip_special_tokens=True)[0]
