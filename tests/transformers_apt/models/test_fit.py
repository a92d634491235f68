"""`fit`: the largest picture within a number of language tokens, which is never exceeded."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from skimage import data
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from tests.transformers_apt.models.references import VISUAL, layouts_of
from transformers_apt import patch_stats

BACKENDS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def page(width, height, seed=0):
    """Lines of noise on white: plain margins, busy text."""
    picture = np.full((height, width, 3), 255, np.uint8)
    noise = np.random.default_rng(seed).integers(0, 255, picture.shape, np.uint8)
    for top in range(height // 8, height - height // 8, 24):
        picture[top : top + 10, width // 8 : width - width // 8] = noise[
            top : top + 10, width // 8 : width - width // 8
        ]
    return Image.fromarray(picture)


PICTURES = {"photo": Image.fromarray(data.astronaut()), "page": page(700, 500), "strip": page(1400, 60)}


def tokens_of(output):
    return [one["language_tokens"] for one in patch_stats(output)]


def upstreams_tokens(backend, image, **options):
    output = backend()(images=image, patch_selection_method="off", return_tensors="pt", **options)
    return int(output["image_grid_thw"].prod()) // 4


@both_backends
@pytest.mark.parametrize("name", PICTURES)
def test_the_promise_is_kept_and_more_allowance_never_gets_a_smaller_picture(backend, name):
    image, image_processor = PICTURES[name], backend(patch_selection_method="fit")
    whole, areas, used = upstreams_tokens(backend, image), [], []
    for alpha in (0, 0.02, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1):
        output = image_processor(images=image, alpha=alpha, return_tensors="pt")
        (tokens,), limit = tokens_of(output), max(1, round(alpha * whole))
        assert 1 <= tokens <= limit
        (info,) = image_processor.last_budget_info
        assert (info["language_tokens"], info["limit"], info["cells"], info["alpha"]) == (tokens, limit, whole, alpha)
        areas.append(int(output["image_grid_thw"].prod()))
        used.append(tokens / limit)
    assert areas == sorted(areas) and areas[-1] == 4 * whole and areas[0] == 4
    assert np.mean(used) > 0.6, "a promise is easily kept by wasting what it allows"


@pytest.mark.generated
@given(
    st.integers(28, 500), st.integers(28, 500), st.integers(0, 9), st.floats(0, 1), st.none() | st.integers(1, 300),
    st.sampled_from(BACKENDS),
)  # fmt: skip
def test_the_promise_holds_of_any_picture(width, height, seed, alpha, most, backend):
    picture = page(width, height, seed)
    settings = {"patch_selection_method": "fit", "alpha": alpha, "max_language_tokens": most, "return_tensors": "pt"}
    first, again = (backend()(images=picture, **settings) for _ in range(2))
    whole = upstreams_tokens(backend, picture)
    assert tokens_of(first)[0] <= min(max(1, round(alpha * whole)), most or whole)
    assert all(torch.equal(first[name], again[name]) for name in VISUAL)


@both_backends
def test_max_language_tokens_alone_asks_for_it(backend):
    images = list(PICTURES.values())
    output = backend()(images=images, max_language_tokens=40, return_tensors="pt")
    assert max(tokens_of(output)) <= 40
    named = backend(patch_selection_method="fit", max_language_tokens=40)(images=images, return_tensors="pt")
    assert all(torch.equal(output[name], named[name]) for name in VISUAL)
    assert tokens_of(backend()(images=images, max_language_tokens=10**6, return_tensors="pt"))[0] > 40


@both_backends
def test_its_tiling_is_the_recommended_one_unless_another_is_asked_for(backend):
    recommended = {"importance_method": "upsample_mse", "drop_tolerance": 2}
    image, plain = PICTURES["page"], backend()
    fits = plain(images=image, patch_selection_method="fit", return_tensors="pt")
    tiled = plain(images=image, patch_selection_method="v1", return_tensors="pt", **recommended)
    assert all(torch.equal(fits[name], tiled[name]) for name in VISUAL), "at alpha 1 the picture has its full size"
    other = {"importance_method": "upsample_l4", "thresholds": [9, 9], "drop_tolerance": "off"}
    fits = plain(images=image, patch_selection_method="fit", return_tensors="pt", **other)
    tiled = plain(images=image, patch_selection_method="v1", return_tensors="pt", **other)
    assert all(torch.equal(fits[name], tiled[name]) for name in VISUAL)


@both_backends
def test_no_company_changes_it(backend):
    image_processor = backend(patch_selection_method="fit", alpha=0.3)
    images = [*PICTURES.values(), PICTURES["photo"].rotate(90)]
    together = image_processor(images=images, return_tensors="pt")
    alone = [image_processor(images=image, return_tensors="pt") for image in images]
    assert all(torch.equal(torch.cat([one[name] for one in alone]), together[name]) for name in VISUAL)


def test_both_backends_take_the_same_resolution():
    for image in PICTURES.values():
        outputs = [
            backend(patch_selection_method="fit", alpha=0.3)(images=image, return_tensors="pt") for backend in BACKENDS
        ]
        assert torch.equal(outputs[0]["image_grid_thw"], outputs[1]["image_grid_thw"])


@both_backends
def test_the_calls_own_bounds_hold(backend):
    size = {"shortest_edge": 56 * 56, "longest_edge": 100 * 28 * 28}
    output = backend()(images=PICTURES["photo"], patch_selection_method="fit", size=size, return_tensors="pt")
    assert int(output["image_grid_thw"].prod()) // 4 == upstreams_tokens(backend, PICTURES["photo"], size=size) <= 100


@both_backends
def test_an_image_that_min_pixels_enlarges_is_made_smaller_step_by_step(backend):
    """And not at once down to its own size."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    size = {"shortest_edge": 256 * 784, "longest_edge": 1280 * 784}
    counts = [
        tokens_of(backend()(images=noise, patch_selection_method="fit", alpha=alpha, size=size, return_tensors="pt"))[
            0
        ]
        for alpha in (0.3, 0.5, 0.9, 0.99, 1.0)
    ]
    assert counts == sorted(counts) and counts[-1] == 256
    assert all(count > 0.6 * alpha * 256 for count, alpha in zip(counts, (0.3, 0.5, 0.9, 0.99, 1.0), strict=True))


def test_settings_of_other_methods_further_out(monkeypatch):
    """An alpha is taken with the method that it was meant for; thresholds leave a method alone that reads them."""
    image = PICTURES["photo"]
    whole = upstreams_tokens(Qwen2VLImageProcessor, image)
    for further in (
        {"patch_selection_method": "budget", "alpha": 0.1},
        {"patch_selection_method": "v2", "alpha": 1.5},
    ):
        found = Qwen2VLImageProcessor(**further)
        found(images=image, max_language_tokens=200)
        assert found.last_budget_info[0]["limit"] == min(200, whole)
        monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", json.dumps(further))
        lone = Qwen2VLImageProcessor()
        lone(images=image, max_language_tokens=200)
        assert lone.last_budget_info[0]["limit"] == min(200, whole)
        monkeypatch.delenv("TRANSFORMERS_APT_SETTINGS")
    fits = Qwen2VLImageProcessor(patch_selection_method="fit", max_language_tokens=49)
    assert tokens_of(fits(images=image, thresholds=[9, 9], return_tensors="pt"))[0] <= 49
    assert fits.last_budget_info[0]["limit"] == 49


def test_an_image_that_cannot_be_chosen_on_is_made_smaller_and_kept_whole():
    image = torch.from_numpy(np.asarray(PICTURES["photo"]).astype(np.int32) * 200).permute(2, 0, 1)
    output = Qwen2VLImageProcessor()(images=image, patch_selection_method="fit", alpha=0.3, return_tensors="pt")
    (tokens,), whole = tokens_of(output), upstreams_tokens(Qwen2VLImageProcessor, PICTURES["photo"])
    assert tokens == int(output["image_grid_thw"].prod()) // 4 <= round(0.3 * whole)


@both_backends
def test_what_cannot_be_resized_is_refused(backend):
    image = PICTURES["photo"].resize((280, 280))
    kept = backend()(images=image, patch_selection_method="fit", do_resize=False, return_tensors="pt")
    assert int(kept["image_grid_thw"].prod()) == 400
    with pytest.raises(ValueError, match=r"makes \d+ language tokens.*allows 10 .*cannot be resized.*do_resize=True"):
        backend()(images=image, patch_selection_method="fit", alpha=0.1, do_resize=False)

    class Stubborn(backend):
        def resize(self, *args, **kwargs):
            return super().resize(*args, **{**kwargs, "size": self.size})

    with pytest.raises(ValueError, match="resizes as upstream does"):
        Stubborn(patch_selection_method="fit", alpha=0.1)(images=PICTURES["photo"])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", float("nan")])
def test_limits_that_are_none(value):
    with pytest.raises((ValueError, TypeError), match="max_language_tokens="):
        Qwen2VLImageProcessor()(images=PICTURES["strip"], max_language_tokens=value)
    with pytest.raises((ValueError, TypeError), match="max_language_tokens="):
        Qwen2VLImageProcessor(max_language_tokens=value)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alphas_that_are_no_fraction(alpha):
    with pytest.raises(
        ValueError, match=r"alpha=.* with 'fit': expected 0 <= alpha <= 1, the fraction of the language"
    ):
        Qwen2VLImageProcessor()(images=PICTURES["strip"], patch_selection_method="fit", alpha=alpha)


@pytest.mark.every_family
def test_from_photo_to_answer(processor, model, prompt, monkeypatch, tmp_path):
    """In every family, by each way to pass it: as many placeholders as tokens, and `generate` works."""
    image, settings = PICTURES["page"], {"patch_selection_method": "fit", "alpha": 0.4}
    call = {"images": [image, PICTURES["photo"]], "text": prompt(2), "return_tensors": "pt"}
    inputs = processor(**call, images_kwargs=settings)
    assert sum(tokens_of(inputs)) == int((inputs["input_ids"] == processor.image_token_id).sum())
    assert all(layout.dropped_cells for layout in layouts_of(inputs)[:1])
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    monkeypatch.setenv("TRANSFORMERS_APT_SETTINGS", json.dumps(settings))
    again = processor(**call)
    assert all(torch.equal(again[name], value) for name, value in inputs.items())


def test_it_is_saved_and_loaded(tmp_path):
    Qwen2VLImageProcessor(patch_selection_method="fit", max_language_tokens=30).save_pretrained(tmp_path)
    loaded = Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert max(tokens_of(loaded(images=list(PICTURES.values()), return_tensors="pt"))) <= 30


def test_detail_gets_the_tokens_that_plain_parts_leave():
    """What it is for: at as many tokens a page with margins is seen larger than a plain downscale shows it."""
    picture = Image.new("RGB", (1120, 1120), "white")
    ImageDraw.Draw(picture).text((500, 500), "a small line of text", fill="black")
    output = Qwen2VLImageProcessor()(images=picture, patch_selection_method="fit", alpha=0.2, return_tensors="pt")
    assert output["image_grid_thw"].tolist() == [[1, 70, 70]]
