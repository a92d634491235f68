"""Self-distillation: who learns, from what, and what remains as it was."""

import errno
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file

from tests.transformers_apt.training.conftest import let_learn
from transformers_apt import training
from transformers_apt.models.settings import check_selection
from transformers_apt.training.agreement import Agreement, Exam, what_got_worse
from transformers_apt.training.batches import Share, full_resolution, make_step, steps_from
from transformers_apt.training.files import replace
from transformers_apt.training.pairs import Pair
from transformers_apt.training.practice import GotWorseError, Plan, Practice
from transformers_apt.training.random_settings import draw_settings
from transformers_apt.training.teacher import Answer, answer, divergence

PROMPTS = ("What is this?", "And what is this, please?", "Hi")


class Photos:
    """Three photos without end; `interrupt_at` asks the process to end when that pair is fetched."""

    def __init__(self, photos, interrupt_at=math.inf):
        self.photos, self.interrupt_at = photos, interrupt_at

    def __getitem__(self, index):
        if index == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return Pair(self.photos[index % 3], PROMPTS[index % 3], key=f"photo{index % 3}")


@pytest.fixture
def begin(load_model, processor, photos, tmp_path):
    """`begin(name, pairs=…, **plan)`: practice in a folder of this name, with its model."""

    def begin(name="out", pairs=None, model=None, held_out=3, **plan):
        defaults = {"steps": 3, "batch": 2, "views": 2, "max_new_tokens": 3, "workers": 0}
        pairs = pairs or Photos(photos)
        exam = [pairs[index] for index in range(held_out)]
        model, plan = model or load_model(), Plan(**(defaults | plan))
        return Practice(Accelerator(cpu=True), model, processor, pairs, exam, plan, tmp_path / name)

    return begin


def weights(practice):
    return {name: weight.detach().clone() for name, weight in practice.bare.named_parameters()}


def losses(practice):
    return [json.loads(line)["loss"] for line in (practice.folder / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- settings and steps


def test_settings_are_those_that_processors_take_and_differ():
    drawn = [draw_settings(np.random.default_rng([0, index])) for index in range(200)]
    for settings in drawn:
        check_selection(**settings)
    assert {settings["patch_selection_method"] for settings in drawn} == {"v1", "fit", "budget", "joint"}
    dropping = sum(settings["drop_tolerance"] != "off" for settings in drawn)
    assert 100 < dropping < 170
    assert drawn == [draw_settings(np.random.default_rng([0, index])) for index in range(200)]


def test_processes_share_the_step_that_one_process_reads(processor, photos, tmp_path):
    def read(rank, processes, seed=0):
        return make_step(5, Photos(photos), processor, Share(4, 2, rank, processes, seed, tmp_path))

    whole, halves, other = read(0, 1), [read(rank, 2) for rank in range(2)], read(0, 1, seed=1)
    shared = [student for half in halves for student in half.students]
    for one, two in zip(whole.students, shared, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert len(whole.students) == 8
    assert any(
        len(one["pixel_values"]) != len(two["pixel_values"])
        for one, two in zip(whole.students, other.students, strict=True)
    )


# ---------------------------------------------------------------- the teacher


def test_divergence_is_what_torch_computes_and_less_where_rare_tokens_count_as_one():
    teacher, student = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0))
    every = teacher.log_softmax(-1).topk(50)
    exact = divergence(student, Answer(torch.zeros(4), every.indices, every.values))
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(exact, expected)
    some = divergence(student, Answer(torch.zeros(4), every.indices[:, :20], every.values[:, :20]))
    assert bool((some < exact).all()) and bool((some > 0).all())


def test_the_teachers_likelihoods_are_found_again_at_full_resolution(load_model, processor, photos):
    """Prompts of different lengths, padded and continued by the answers: each place is the right one."""
    pairs = [Photos(photos)[index] for index in range(3)]
    model = load_model()
    exam = Exam.by(model, processor, pairs, 3, batch=3)
    for batch in (1, 3):
        found = exam.take(model, processor, batch)["off"]
        assert abs(found.divergence) < 1e-5 and found.same == 1, batch


def test_an_answer_ends_with_the_end_token(load_model, processor, photos):
    model = load_model()
    inputs = full_resolution(processor, [Photos(photos)[0]])
    (long,) = answer(model, inputs, 4)
    model.generation_config.eos_token_id = [int(long.tokens[1])]
    (short,) = answer(model, inputs, 4)
    first = long.tokens.tolist().index(int(long.tokens[1]))
    assert short.tokens.tolist() == long.tokens[: first + 1].tolist() and len(short.likely) == first + 1


@pytest.mark.parametrize(
    "own",
    [{"repetition_penalty": 3.0}, {"num_beams": 2}, {"do_sample": True, "temperature": 9.0}, {"stop_strings": "a"}],
)
def test_the_teacher_is_asked_without_the_checkpoints_own_generation_settings(own, load_model, processor, photos):
    """Qwen2.5-VL's has a penalty on repetition: with it, a model disagreed with itself."""
    model, pairs = load_model(), [Photos(photos)[index] for index in range(3)]
    expected = Exam.by(model, processor, pairs, 6, batch=3).answers
    model.generation_config.update(**own)
    exam = Exam.by(model, processor, pairs, 6, batch=3)
    assert [taught.tokens.tolist() for taught in exam.answers] == [taught.tokens.tolist() for taught in expected]
    assert exam.take(model, processor, 3)["off"].same == 1
    assert all(getattr(model.generation_config, name) == value for name, value in own.items())


def test_answers_are_asked_for_once(begin):
    practice = begin(steps=4)
    asked = []
    practice.bare.generate, generate = (lambda **kwargs: asked.append(1) or generate(**kwargs)), practice.bare.generate
    practice.run()
    assert len(asked) == 2  # two pairs, then the third beside a known one
    assert len(list((practice.folder / "answers").iterdir())) == 3


# ---------------------------------------------------------------- practice


def test_the_branch_learns_and_nothing_else_does(begin, processor):
    practice = begin(steps=12, lr=1e-2)
    before, images = weights(practice), practice.exam.pairs
    practice.run()
    after = weights(practice)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".branch." in name}
    found = practice.agreement()
    assert found["off"] == practice.before["off"], "full resolution is what it was, to the bit"
    assert found["off"].divergence < 1e-5 and found["off"].same == 1 and len(images) == 3
    assert found["budget 0.3"].divergence < practice.before["budget 0.3"].divergence
    practice.save(found)
    saved = load_file(practice.out / "branch.safetensors")
    assert saved and all(
        torch.equal(value, after[f"model.visual.branch.{name}"].cpu()) for name, value in saved.items()
    )


def test_lora_learns_and_the_teacher_does_not_change(begin):
    practice = begin(student="lora", steps=2)
    taught = practice.exam.answers
    practice.run()
    assert practice.agreement()["off"] != practice.before["off"]
    with practice.student.as_teacher(practice.bare):
        again = Exam.by(practice.bare, practice.processor, practice.exam.pairs, 3, 2)
    for one, two in zip(taught, again.answers, strict=True):
        assert torch.equal(one.log_probabilities, two.log_probabilities)
    practice.student.save(practice.bare, practice.out, practice.accelerator.get_state_dict(practice.model))
    assert (practice.out / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("student", ["branch", "lora"])
def test_interrupted_practice_goes_on_to_the_same_bits(student, begin, photos):
    whole = begin("whole", steps=4, student=student)
    whole.run()
    cut = begin("cut", pairs=Photos(photos, interrupt_at=4), steps=4, student=student)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert cut.step == 2
    rest = begin("cut", steps=4, student=student)
    assert rest.step == 2 and rest.before == cut.before
    rest.run()
    assert losses(rest) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name
    rest.run()
    assert rest.step == 4, "what is done is done"


def test_what_got_worse_is_not_saved(begin):
    practice = begin(lr=50.0)
    practice.run()
    with pytest.raises(GotWorseError, match="nothing was saved, because on held-out images the divergence"):
        practice.save(practice.agreement())
    assert [path.name for path in practice.out.iterdir()] == ["practice"]


def test_worse_is_a_mean_over_all_settings_but_off():
    before = {"off": Agreement(0, 1, 9), "a": Agreement(0.2, 0.8, 9), "b": Agreement(0.4, 0.6, 9)}
    assert what_got_worse(before, before) is None
    assert what_got_worse(before, before | {"a": Agreement(0.3, 0.8, 9), "b": Agreement(0.2, 0.6, 9)}) is None
    assert "rose from 0.3 to 0.35" in what_got_worse(before, before | {"a": Agreement(0.3, 0.8, 9)})
    assert "fell from 70.0 to 60.0 %" in what_got_worse(before, before | {"a": Agreement(0.1, 0.6, 9)})
    assert "rose from 0.3 to nan" in what_got_worse(before, before | {"a": Agreement(math.nan, 0.8, 9)})


def test_a_loss_that_is_no_number_ends_practice_and_the_saved_state_stays(begin):
    practice = begin(steps=1)
    practice.run()
    kept = practice.state.read_bytes()
    practice = begin(steps=2)
    with torch.no_grad():
        practice.bare.model.visual.branch.conv.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="the loss of step 2 is nan: expected a number"):
        practice.run()
    assert practice.state.read_bytes() == kept


def test_what_has_practised_practises_on(begin, load_model, processor):
    model = load_model()
    branch = let_learn(training.add_branch(model))
    before = {name: weight.clone() for name, weight in branch.state_dict().items()}
    practice = begin(model=model, steps=1)
    assert practice.bare.model.visual.branch is branch and processor.image_processor.patch_parts is True
    practice.run()
    assert not torch.equal(branch.zero.weight, before["zero.weight"])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"student": "all"}, "student='all': expected one of"),
        ({"minutes": math.inf}, "no end"),
        ({"steps": 3, "batch": 0}, "batch=0: expected more than 0"),
        ({"steps": 3, "lr": math.nan}, "lr=nan"),
        ({"steps": 3, "lr": math.inf}, "lr=inf"),
        ({"steps": 3, "save_every": -60}, "save_every=-60"),
    ],
)
def test_plans_that_cannot_be(plan, message):
    with pytest.raises(ValueError, match=message):
        Plan(**plan)


def test_split_weights_are_refused_by_name(begin, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="configured for FSDP, which splits the weights"):
        begin()


def test_another_practice_in_the_same_folder_is_refused(begin, load_model):
    """Before a state was saved too: answers and judgement are kept from the first minute."""
    begin()
    with pytest.raises(ValueError, match=r"holds a practice with \{'views': 2\}, not \{'views': 3\}"):
        begin(views=3)
    with pytest.raises(ValueError, match=r"'held out'.*go on with the same model, images, prompts and options"):
        begin(held_out=2)
    with pytest.raises(ValueError, match=r"\{'dtype': 'torch.float32'"):
        begin(model=load_model(dtype=torch.bfloat16))
    other = load_model()
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    with pytest.raises(ValueError, match=r"with \{'weights': "):
        begin(model=other)
    begin(steps=1, lr=1e-2).run()


def test_damaged_files_are_named(begin):
    practice = begin(steps=1)
    practice.run()
    for file in (practice.state, practice.folder / "before.json", practice.folder / "plan.json"):
        whole = file.read_bytes()
        file.write_bytes(whole[:20])
        with pytest.raises(ValueError, match=f"{file.name} is damaged"):
            begin(steps=1)
        file.write_bytes(whole)
    begin(steps=1)


def test_steps_after_the_last_saved_state_are_logged_once(begin):
    """They are done again by the call that goes on after a process was killed."""
    practice = begin(steps=2)
    practice.run()
    with open(practice.folder / "log.jsonl", "a") as log:
        log.write('{"step": 3, "seconds": 9, "loss": 1.0}\n{"step": 4, "sec')
    begin(steps=3).run()
    assert len(losses(practice)) == 3


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "state.pt"
    replace(file, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*state\.pt'"):
        replace(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


class Refusing:
    def __getitem__(self, index):
        raise ValueError(f"no pair {index}")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_process_that_prepares_pictures_is_one_line(workers, processor, tmp_path):
    steps = steps_from(3, Refusing(), processor, Share(2, 1, 0, 1, 0, tmp_path), workers)
    with pytest.raises(ValueError) as caught:
        next(steps)
    assert str(caught.value) == "no pair 6"
