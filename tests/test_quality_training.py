"""The quality benchmark trains what it says: upstream's model, upstream's inputs, repeatable scenes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("font_roboto", reason="pip install 'transformers-apt[bench]'")

from transformers import Qwen2VLForConditionalGeneration

from benchmarks.quality import assets, export, fast_forward, questions, scenes, stream, train, trials
from benchmarks.quality.collate import IGNORE, NO_DIGIT, Prompter, collate
from benchmarks.quality.mixed import collate_mixed, draw_selection
from benchmarks.quality.stream import make_batch
from transformers_apt.embedded.tiny_checkpoint import build_config, build_model, build_processor

SIZE = (112, 168)


@pytest.fixture(scope="module")
def processor():
    return build_processor(questions.WORDS)


@pytest.fixture(scope="module")
def samples():
    rng, found = np.random.default_rng(1), []
    while len(found) < 3:
        scene = scenes.make("photo", rng, "train", *SIZE, 20)
        asked = questions.draw(rng, scene, 2)
        if len(asked) == 2:
            found.append((scene, asked))
    return found


def _upstream_inputs(processor, scene, asked, **images_kwargs):
    turns = []
    for index, question in enumerate(asked):
        picture = [] if index else [{"type": "image"}]
        turns.append({"role": "user", "content": [*picture, {"type": "text", "text": question.text}]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    text = processor.apply_chat_template(turns)
    images_kwargs["do_resize"] = False
    return processor(text=[text], images=[scene.image], images_kwargs=images_kwargs, return_tensors="pt")


def _upstream(processor):
    """Upstream's own rows, whether or not the package's patch is applied."""
    processor.image_processor.patch_selection_method = "off"
    return processor


def test_patch_rows_and_tokens_are_upstreams(processor, samples):
    batch = collate(samples, *SIZE, Prompter(processor.tokenizer))
    scale = torch.tensor([0.26862954, 0.26130258, 0.27577711]).repeat_interleave(196)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).repeat_interleave(196)
    for row, (scene, asked) in enumerate(samples):
        inputs = _upstream_inputs(_upstream(processor), scene, asked)
        frames = inputs["pixel_values"].view(-1, 3, 2, 196)
        assert torch.equal(frames[:, :, 0], frames[:, :, 1])
        ours = (batch.patches[row].float() / 255 - mean) / scale
        assert torch.allclose(frames[:, :, 0].flatten(1), ours, atol=1e-5)
        ids = inputs["input_ids"][0]
        assert torch.equal(batch.ids[row, : len(ids) - 1], ids[:-1])


@pytest.mark.parametrize("size", ["test", "demo"])
def test_fast_forward_is_upstreams_forward(processor, samples, size):
    model = build_model(build_config(size, processor.tokenizer), seed=0)
    batch = collate(samples, *SIZE, Prompter(processor.tokenizer))
    with torch.no_grad():
        w = fast_forward.weights(model, torch.float32)
        merged = fast_forward.tower(w, model.config, batch)
        logits, labels = fast_forward.answer_logits(w, model.config, merged, batch)
        start = 0
        for row, (scene, asked) in enumerate(samples):
            inputs = _upstream_inputs(_upstream(processor), scene, asked)
            expected = model(**inputs).logits[0]
            places = (batch.labels[row] != IGNORE).nonzero()[:, 0]
            ours = logits[start : start + len(places)]
            assert torch.allclose(ours, expected[places], atol=1e-4), (ours - expected[places]).abs().max()
            assert torch.equal(labels[start : start + len(places)], inputs["input_ids"][0, places + 1])
            start += len(places)


@pytest.mark.parametrize(("thresholds", "taken"), [([math.inf, 0.0], True), ([0.0, 0.0], False)])
def test_tokens_of_28_px_patches_are_borrowed_from_full_resolution(processor, samples, thresholds, taken):
    """All patches are of 28 px, or none."""
    model, prompter = build_model(build_config("test", processor.tokenizer), seed=0), Prompter(processor.tokenizer)
    setting = {"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": thresholds}
    mixed = collate_mixed(samples[:1], *SIZE, prompter, setting)
    w = fast_forward.weights(model, torch.float32)
    merged = fast_forward.tower(w, model.config, mixed)
    at_full = fast_forward.tower(w, model.config, collate(samples[:1], *SIZE, prompter))
    found = trials.borrowed(merged, at_full, mixed)
    assert torch.equal(found, at_full if taken else merged)
    assert torch.allclose(merged, at_full, atol=1e-4) != taken


def test_every_parameter_learns(processor, samples):
    model = build_model(build_config("test", processor.tokenizer), seed=0)
    batch = collate(samples, *SIZE, Prompter(processor.tokenizer))
    w = fast_forward.weights(model, torch.bfloat16)
    merged = fast_forward.tower(w, model.config, batch)
    logits, labels = fast_forward.answer_logits(w, model.config, merged, batch)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_batches_follow_from_seed_and_number(processor):
    prompter = Prompter(processor.tokenizer)
    first, again, other = (make_batch(9000, 10000, seed, 512, prompter) for seed in (0, 0, 1))
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.labels, again.labels)
    assert first.patches.shape != other.patches.shape or not torch.equal(first.patches, other.patches)


def test_photos_and_typefaces_are_split():
    assert not set(assets.font_paths("train")) & set(assets.font_paths("test"))
    train, test = ({image.tobytes() for image in assets.photos(split)} for split in ("train", "test"))
    assert train and test and not train & test


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_digits_are_where_the_targets_say(kind):
    rng = np.random.default_rng(5)
    for _ in range(20):
        scene = scenes.make(kind, rng, "test", 224, 224, 16)
        if scene.code is None:
            continue
        assert "".join(str(glyph.digit) for glyph in sorted(scene.glyphs, key=lambda g: g.x)) == scene.code
        batch = collate([(scene, [])], 224, 224, None)
        digits = batch.slots[batch.slots != NO_DIGIT]
        assert sorted(digits.tolist()) == sorted(int(digit) for digit in scene.code)


def test_questions_have_the_answers_of_the_scene():
    rng, seen = np.random.default_rng(2), set()
    for _ in range(150):
        scene = scenes.make(str(rng.choice(scenes.KINDS)), rng, "test", 196, 252, 18)
        for question in questions.questions(scene):
            seen.add(question.type)
            if question.type == "read":
                assert question.answer == scene.code and question.text_px == 18
            if question.type == "count":
                name = question.text.split()[2].removesuffix("s")
                assert int(question.answer) == sum(thing.kind == name for thing in scene.things)
    assert seen == set(questions.TYPES)


def test_unknown_kind_and_split_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        scenes.make("poster", np.random.default_rng(0), "train", 224, 224, 16)
    with pytest.raises(ValueError, match="expected one of"):
        assets.photos("val")


@pytest.mark.parametrize(
    "selection",
    [
        {"patch_selection_method": "budget", "alpha": 0.4, "importance_method": "upsample_mse"},
        {"patch_selection_method": "v1", "importance_method": "upsample_mse", "thresholds": [100.0, 100.0]},
        {"patch_selection_method": "v2", "alpha": 0.8},
        {"importance_method": "upsample_mse", "thresholds": [16.0, 16.0], "drop_tolerance": 2.0},
        {"patch_selection_method": "budget", "alpha": 0.6, "importance_method": "upsample_mse", "drop_tolerance": 4.0},
    ],
)
def test_fast_forward_on_mixed_patches_is_the_products_forward(processor, samples, selection):
    import transformers_apt

    model = build_model(build_config("test", processor.tokenizer), seed=0)
    batch = collate_mixed(samples, *SIZE, Prompter(processor.tokenizer), selection)
    assert batch.mixed is not None
    with torch.no_grad(), transformers_apt.applied():
        w = fast_forward.weights(model, torch.float32)
        merged = fast_forward.tower(w, model.config, batch)
        logits, labels = fast_forward.answer_logits(w, model.config, merged, batch)
        start = 0
        for row, (scene, asked) in enumerate(samples):
            inputs = _upstream_inputs(build_processor(questions.WORDS), scene, asked, **selection)
            assert len(inputs["pixel_values"]) == int(batch.mixed.valid[row].sum())
            expected = model(**inputs).logits[0]
            places = (batch.labels[row] != IGNORE).nonzero()[:, 0]
            ours = logits[start : start + len(places)]
            assert torch.allclose(ours, expected[places], atol=1e-4), (ours - expected[places]).abs().max()
            assert torch.equal(labels[start : start + len(places)], inputs["input_ids"][0, places + 1])
            start += len(places)


def test_random_selections_are_all_accepted(processor, samples):
    rng = np.random.default_rng(0)
    for _ in range(30):
        collate_mixed(samples[:1], *SIZE, Prompter(processor.tokenizer), draw_selection(rng))


def test_training_continues_where_it_stopped_and_exports_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "held_out", lambda seed, count, prompter: stream.held_out(seed, 4, prompter))
    phase = train.PHASES[1]
    for name, stops in (("twice", (1, None)), ("once", (None,))):
        for stop in stops:
            plan = train.Plan(3, 0, patches=256, watch_every=100, stop=stop, workers=2)
            train.train(train.Trainer(tmp_path / name, 0, phase), plan)
    twice, once = (train.Trainer(tmp_path / name, 0, phase) for name in ("twice", "once"))
    assert (twice.step, twice.images) == (once.step, once.images) and twice.step == 3
    for (name, found), expected in zip(twice.model.named_parameters(), once.model.parameters(), strict=True):
        assert torch.equal(found, expected), name

    with pytest.raises(FileNotFoundError, match=r"has no state.pt: train first"):
        export.export([tmp_path / "nowhere"], tmp_path / "out")
    export.export([tmp_path / "twice"], tmp_path / "out")
    loaded = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for name, found in loaded.state_dict().items():
        assert torch.equal(found, once.model.state_dict()[name].bfloat16()), name
    assert "phase 1: 3 steps" in (tmp_path / "out" / "README.md").read_text()


def test_training_starts_from_a_checkpoint_and_ends_by_the_clock(tmp_path, monkeypatch):
    from transformers_apt import demo_model_path

    monkeypatch.setattr(train, "held_out", lambda seed, count, prompter: stream.held_out(seed, 4, prompter))
    origin = Qwen2VLForConditionalGeneration.from_pretrained(demo_model_path(), dtype=torch.float32)
    trainer = train.Trainer(tmp_path / "run", 0, train.PHASES[2], demo_model_path())
    for (name, found), expected in zip(trainer.model.named_parameters(), origin.parameters(), strict=True):
        assert torch.equal(found, expected), name

    train.train(trainer, train.Plan(1000, 1000, patches=256, seconds=0.1))
    again = train.Trainer(tmp_path / "run", 0, train.PHASES[2])
    assert again.step == trainer.step < 1000 and again.seconds >= 0.1

    log = tmp_path / "run" / "log.jsonl"
    export.export([log, log, log, tmp_path / "run"], tmp_path / "out")  # continued twice
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count(f"continued from that checkpoint: {again.step} steps") == 2
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        train.Trainer(tmp_path / "other", 0, train.PHASES[2], tmp_path / "nowhere")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_is_training_on_a_cpu(tmp_path, processor, samples):
    batch = collate_mixed(samples, *SIZE, Prompter(processor.tokenizer), {"drop_tolerance": 2.0})
    losses = [train.Trainer(tmp_path / device, 0, train.PHASES[2], device=device) for device in ("cpu", "cuda")]
    cpu, cuda = (trainer.train_step(batch, 0.5)["answer"] for trainer in losses)
    assert cuda == pytest.approx(cpu, rel=0.02)
