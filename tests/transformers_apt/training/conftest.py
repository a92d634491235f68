"""A model with a branch that has learned something, and inputs for it."""

import pytest
import torch

from tests.transformers_apt.models.references import BUDGET
from transformers_apt import training


def let_learn(branch, seed=0):
    """Weights as they may be after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in branch.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.5 if weight.ndim == 1 else 0.3))
    return branch


@pytest.fixture
def practised(model):
    """The model, with a trained branch."""
    let_learn(training.add_branch(model))
    return model


@pytest.fixture
def batch(processor, prompt, half_plain, photos):
    """Two prompts, the second with two images, in every patch size."""
    processor.image_processor.patch_parts = True
    batch = processor(
        images=[half_plain, photos[0], photos[2]],
        text=[prompt(), prompt(images=2, text="And these, please?")],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        images_kwargs=BUDGET,
    )
    assert set(batch["image_patch_layout"][:, 2].tolist()) == {1, 2, 4}
    return batch


def without_parts(batch):
    return {name: value for name, value in batch.items() if name != "image_patch_parts"}


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits
