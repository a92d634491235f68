"""Loss and gradients through mixed-scale patches."""

import pytest
import torch

from tests.transformers_apt.models.references import SELECTIONS, visual

pytestmark = pytest.mark.every_family


@pytest.fixture(params=SELECTIONS)
def batch(request, processor, prompt, photos, half_plain):
    batch = processor(
        images=[half_plain, photos[0]],
        text=[prompt() + "A cat.", prompt(text="And what is this, please?") + "A dog."],
        return_tensors="pt",
        padding=True,
        images_kwargs=SELECTIONS[request.param],
    )
    is_text = (batch["attention_mask"] == 1) & (batch["mm_token_type_ids"] == 0)
    return {**batch, "labels": batch["input_ids"].where(is_text, -100)}


def gradients(model, batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.fixture
def plain(load_model, batch):
    return gradients(load_model().train(), batch)


def test_every_weight_learns(plain):
    loss, grads = plain
    assert bool(torch.isfinite(loss))
    for name, grad in grads.items():
        assert grad is not None and bool(torch.isfinite(grad).all()), name
        assert "visual" not in name or bool(grad.any()), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant, plain, load_model, batch):
    model = load_model().train()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its newer name
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    runs = []
    model.model.visual.blocks[0].attn.register_forward_hook(lambda *_: runs.append(1))
    loss, grads = gradients(model, batch)
    assert len(runs) == 2, "the tower was meant to be run again in the backward pass"
    assert torch.equal(loss, plain[0])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain[1][name], msg=name)


def test_everything_kept_gives_upstreams_gradients(load_model, processor, prompt, half_plain, upstream):
    call = {"images": half_plain, "text": prompt() + "A cat.", "return_tensors": "pt"}

    def learn(**settings):
        batch = processor(**call, **settings)
        return gradients(load_model().train(), {**batch, "labels": batch["input_ids"]})

    with upstream():
        expected = learn()
    found = learn(images_kwargs={"patch_selection_method": "budget", "alpha": 1.0})
    assert torch.equal(found[0], expected[0])
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


def test_the_gradient_of_a_coarse_patch_matches_finite_differences(load_model, batch):
    model = load_model(dtype=torch.float64)
    coarse = int((batch["image_patch_layout"][:, 2] > 1).nonzero()[0])
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(
        len(batch["pixel_values"]), model.config.text_config.hidden_size, generator=generator, dtype=torch.float64
    )

    def score(pixels):
        features = torch.cat(model.get_image_features(**{**visual(batch), "pixel_values": pixels}).pooler_output)
        return (features * weights[: len(features)]).sum()

    pixels = batch["pixel_values"].double().requires_grad_()
    score(pixels).backward()
    step = torch.zeros_like(pixels)
    step[coarse] = torch.randn(pixels.shape[1], generator=generator, dtype=torch.float64) * 1e-3
    with torch.no_grad():
        difference = score(pixels + step) - score(pixels - step)
    assert float(difference) == pytest.approx(
        2 * float((pixels.grad * step).sum()), rel=5e-3
    )  # upstream rotates in float32
