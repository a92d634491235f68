"""What a branch computes: nothing at first, never anything at full resolution, and else its formula."""

import copy
import pickle

import pytest
import torch

from apt_code import InvalidLayoutError, PatchLayout
from tests.transformers_apt.models.references import BUDGET, layouts_of, visual
from tests.transformers_apt.models.slow_towers import slow_tower
from tests.transformers_apt.training.conftest import let_learn, logits, without_parts
from transformers_apt import training
from transformers_apt.models.branch import embed

FULL = ({"patch_selection_method": "off"}, {"patch_selection_method": "budget", "alpha": 1.0})
PARTS = "image_patch_parts"


@pytest.mark.every_family(moe=True)
def test_a_new_branch_changes_no_bit(model, batch):
    before = logits(model, without_parts(batch))
    training.add_branch(model)
    assert torch.equal(logits(model, batch), before)


@pytest.mark.every_family(moe=True)
@pytest.mark.parametrize("settings", FULL, ids=["off", "every cell split"])
def test_at_full_resolution_a_trained_branch_changes_no_bit(settings, model, processor, prompt, half_plain, batch):
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt", "images_kwargs": settings}
    processor.image_processor.patch_parts = False
    whole = processor(**call)
    before = logits(model, whole), logits(model, without_parts(batch))
    let_learn(training.add_branch(model))
    assert torch.equal(logits(model, whole), before[0])
    processor.image_processor.patch_parts = True
    assert torch.equal(logits(model, processor(**call)), before[0])
    assert not torch.equal(logits(model, batch), before[1]), "the branch was meant to change something"


@pytest.mark.every_family(moe=True)
def test_beside_a_mixed_picture_a_whole_one_changes_no_bit(model, processor, half_plain, photos):
    """In one call, so in one sequence of the tower."""
    processor.image_processor.patch_parts = True
    call = {"images": [photos[0]], "return_tensors": "pt"}
    whole = processor.image_processor(**call, patch_selection_method="budget", alpha=1.0)
    mixed = processor.image_processor(**call | {"images": [half_plain]}, **BUDGET)
    joined = {name: torch.cat([mixed[name], whole[name], mixed[name]]) for name in whole}
    before = model.get_image_features(**without_parts(joined)).pooler_output
    let_learn(training.add_branch(model))
    after = model.get_image_features(**joined).pooler_output
    assert [torch.equal(*pair) for pair in zip(after, before, strict=True)] == [False, True, False]


class Recomputed:
    """A tower whose patch embedding is worked out by the formula, one coarse patch at a time."""

    def __init__(self, tower, layout, parts):
        self.tower, self.layout, self.parts = tower, layout, parts

    def __getattr__(self, name):
        return getattr(self.tower, name)

    def patch_embed(self, rows):
        embedded, start = self.tower.patch_embed(rows).clone(), 0
        conv, zero = self.tower.branch.conv, self.tower.branch.zero
        for index, size in enumerate(self.layout.sizes.tolist()):
            if size == 1:
                continue
            square = self.tower.patch_embed(self.parts[start : start + size * size]).view(size, size, -1)
            start += size * size
            while len(square) > 1:
                half = len(square) // 2
                smaller = torch.empty(half, half, square.shape[-1], dtype=square.dtype)
                for y in range(half):
                    for x in range(half):
                        four = square[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                        smaller[y, x] = torch.einsum("oiyx,yxi->o", conv.weight, four) + conv.bias
                square = smaller
            embedded[index] += zero.weight[:, :, 0, 0] @ square[0, 0] + zero.bias
        assert start == len(self.parts)
        return embedded


@pytest.mark.every_family
def test_the_tower_against_slow_loops(family, load_model, batch):
    model = load_model(dtype=torch.float64)
    tower = model.model.visual
    let_learn(training.add_branch(model))
    images = visual(batch) | {PARTS: batch[PARTS].double()}
    with torch.no_grad():
        found = model.get_image_features(**images)
    layouts = layouts_of(batch)
    rows = batch["pixel_values"].double().split([layout.num_patches for layout in layouts])
    parts = images[PARTS].split([layout.parts.num_patches for layout in layouts])
    with torch.no_grad():
        expected = [
            slow_tower(family, Recomputed(tower, layout, some), image, layout)
            for layout, some, image in zip(layouts, parts, rows, strict=True)
        ]
    for tokens, (_, wanted, _) in zip(found.pooler_output, expected, strict=True):
        torch.testing.assert_close(tokens, wanted, rtol=1e-4, atol=1e-4)  # upstream's angles are float32


def test_a_layout_with_more_scales(load_model):
    """The image processors make none, but towers read them."""
    model = load_model(dtype=torch.float64)
    let_learn(training.add_branch(model))
    corners = torch.zeros(8, 16, dtype=torch.int64)
    corners[0, 0], corners[::4, 8::4], corners[4:6, 12:14], corners[4:6, 14] = 8, 4, 1, 2
    corners[6, 12:16:2], corners[5, 14] = 2, 0
    layout = PatchLayout.from_corner_sizes(corners)
    layout.validate()
    rows = torch.randn(2, 256, 1176, generator=torch.Generator().manual_seed(0)).double()
    found, parts = (rows[i, :count] for i, count in enumerate((len(layout), layout.parts.num_patches)))
    with torch.no_grad():
        expected = Recomputed(model.model.visual, layout, parts).patch_embed(found)
        torch.testing.assert_close(embed(model.model.visual, found, parts, [layout]), expected)


@pytest.mark.every_family
def test_gradients_match_finite_differences(load_model, batch):
    model = load_model(dtype=torch.float64)
    branch = let_learn(training.add_branch(model))
    images = visual(batch) | {PARTS: batch[PARTS].double().requires_grad_()}
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(
        batch["input_ids"].numel(), model.config.text_config.hidden_size, generator=generator
    ).double()

    def score():
        features = torch.cat(model.get_image_features(**images).pooler_output)
        return (features * weights[: len(features)]).sum()

    leaves = [*branch.parameters(), images[PARTS]]
    gradients = torch.autograd.grad(score(), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        step = torch.randn(leaf.shape, generator=generator).double() * 1e-3  # upstream rotates in float32
        scores = []
        with torch.no_grad():
            for sign in (1, -2):
                leaf += sign * step
                scores.append(float(score()))
            leaf += step
        assert scores[0] - scores[1] == pytest.approx(2 * float((gradient * step).sum()), rel=5e-3)


@pytest.mark.every_family
@torch.no_grad()
def test_generate_with_a_batch_and_beams(practised, batch, processor, prompt, half_plain):
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    generated = practised.generate(**batch, **options)
    whole = practised(**{**batch, "input_ids": batch["input_ids"]}).logits[:, -1]
    torch.testing.assert_close(generated.logits[0], whole, rtol=1e-4, atol=1e-4)
    alone = practised.generate(
        **processor(
            images=half_plain,
            text=prompt(),
            return_tensors="pt",
            images_kwargs={"patch_selection_method": "budget", "alpha": 0.3},
        ),
        **options,
    )
    torch.testing.assert_close(generated.logits[0][:1], alone.logits[0], rtol=1e-3, atol=1e-3)
    beams = practised.generate(**batch, max_new_tokens=4, num_beams=2, do_sample=False)
    assert beams.shape[0] == 2


def test_inputs_are_expanded_image_by_image(practised, batch):
    """Where a caller's own loop expands before the images are encoded."""
    _, expanded = practised._expand_inputs_for_generation(expand_size=2, **batch)
    parts = batch[PARTS].split([layout.parts.num_patches for layout in layouts_of(batch)])
    assert torch.equal(expanded[PARTS], torch.cat([rows for part in parts for rows in (part, part)]))


@pytest.mark.cuda
@pytest.mark.every_family
def test_on_a_gpu(practised, batch):
    expected, there = logits(practised, batch), {name: value.to("cuda") for name, value in batch.items()}
    found = logits(practised.to("cuda"), there).cpu()
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    training.remove(practised)
    plain = logits(practised, without_parts(there))
    training.add_branch(practised)
    assert torch.equal(logits(practised, there), plain)


def test_beside_a_model_in_bfloat16(load_model, batch):
    model = load_model(dtype=torch.bfloat16)
    branch = let_learn(training.add_branch(model))
    assert {weight.dtype for weight in branch.parameters()} == {torch.bfloat16}
    half = logits(model, batch)
    branch.float()
    assert logits(model, batch).dtype == half.dtype == torch.bfloat16
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert all(bool(weight.grad.any()) for weight in branch.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(logits(model.float(), batch).isfinite().all())


def test_copied_and_pickled(practised, batch):
    expected = logits(practised, batch)
    for twin in (copy.deepcopy(practised), pickle.loads(pickle.dumps(practised))):
        assert torch.equal(logits(twin, batch), expected)
        training.remove(twin)
        assert torch.equal(logits(practised, batch), expected), "the copy shares its branch with the original"


def test_compiled(practised, batch):
    """The embedding: what lies around it compiles as without a branch."""
    tower = practised.model.visual
    call = (tower, batch["pixel_values"], batch[PARTS], layouts_of(batch))
    found, expected = torch.compile(embed, backend="eager")(*call), embed(*call)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(bool(weight.grad.any()) for weight in tower.branch.parameters())


def test_a_layout_without_parts_is_refused(practised, batch):
    with pytest.raises(InvalidLayoutError, match=r"coarse patches without image_patch_parts.*patch_parts = True"):
        logits(practised, without_parts(batch))
    with pytest.raises(InvalidLayoutError, match="coarse patches without image_patch_parts"):
        practised.generate(**without_parts(batch), max_new_tokens=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda parts: parts[1:], "rows, expected"),
        (lambda parts: parts[:, :-6], "rows of 1170 values, expected 1176"),
        (lambda parts: parts.numpy(), "is a ndarray, expected a tensor"),
    ],
    ids=["fewer", "narrower", "array"],
)
def test_parts_that_do_not_fit_are_refused(change, sentence, practised, batch):
    with pytest.raises(InvalidLayoutError, match=f"{PARTS}.*{sentence}"):
        practised.get_image_features(**visual(batch), image_patch_parts=change(batch[PARTS]))


def test_parts_without_a_layout_are_refused(practised, processor, prompt, half_plain, batch):
    whole = processor(
        images=half_plain, text=prompt(), return_tensors="pt", images_kwargs={"patch_selection_method": "off"}
    )
    for call in (practised, practised.model.get_image_features):
        names = whole if call is practised else visual(whole)
        with pytest.raises(InvalidLayoutError, match="image_patch_parts without image_patch_layout"):
            call(**names, image_patch_parts=batch[PARTS])


def test_a_model_without_a_branch_says_that_parts_have_no_effect(model, batch, caplog):
    expected = logits(model, without_parts(batch))
    assert torch.equal(logits(model, batch), expected)
    assert "image_patch_parts has no effect on a model without a branch" in caplog.text
