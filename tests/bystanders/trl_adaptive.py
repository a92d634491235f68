"""TRL's trainers with adaptive patches asked for: their numbers beside the same model's, called by hand."""

import torch

from tests.bystanders.tiny import BUDGET, photos, save
from tests.bystanders.trl_cases import make_rows, make_trainer, steps, turn
from transformers_apt import training

PROMPT, CHOSEN, REJECTED = turn("user", None, "Hi"), turn("assistant", "A rocket."), turn("assistant", "A cat.")


def _by_hand(folder):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return model.eval(), processor


def _with_branch():
    """A checkpoint's folder, with a branch that has learned something."""
    folder = save()
    model, processor = _by_hand(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in training.add_branch(model, processor).parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _one(processor, photo, *turns):
    """The inputs of one conversation about one photo, under the same setting."""
    text = processor.apply_chat_template([part for parts in turns for part in parts])
    return processor(text=[text], images=[photo], images_kwargs=BUDGET, return_tensors="pt")


def _first_record(trainer, name):
    return next(entry[name] for entry in trainer.state.log_history if name in entry)


@torch.no_grad()
def _sum_of_log_probabilities(model, processor, photo, answer):
    inputs = _one(processor, photo, PROMPT, answer)
    texts = (
        processor.apply_chat_template(PROMPT, add_generation_prompt=True),
        processor.apply_chat_template(PROMPT + answer),
    )
    before, whole = (len(processor.tokenizer(text)["input_ids"]) for text in texts)  # with one placeholder each
    length = whole - before
    scores = model(**inputs).logits[0, -length - 1 : -1].log_softmax(-1)
    return float(scores.gather(-1, inputs["input_ids"][0, -length:, None]).sum())


def _sft(folder, model, processor):
    from trl import SFTConfig, SFTTrainer

    dataset = make_rows(messages=PROMPT + CHOSEN, rows=1)
    trainer = make_trainer(SFTTrainer, SFTConfig(**steps(1, max_length=None)), dataset, BUDGET, folder)
    trainer.train()
    total, count = 0.0, 0
    with torch.no_grad():
        for photo in photos():
            inputs = _one(processor, photo, PROMPT, CHOSEN)
            learned = inputs["input_ids"].shape[1] - 1
            total += float(model(**inputs, labels=inputs["input_ids"]).loss) * learned
            count += learned
    return {"trainer": _first_record(trainer, "loss"), "by hand": total / count}


def _dpo(folder, model, processor):
    from trl import DPOConfig, DPOTrainer

    dataset = make_rows(prompt=PROMPT, chosen=CHOSEN, rejected=REJECTED, rows=1)
    trainer = make_trainer(DPOTrainer, DPOConfig(**steps(1, max_length=None)), dataset, BUDGET, folder)
    trainer.train()
    found = {}
    for name, answer in (("chosen", CHOSEN), ("rejected", REJECTED)):
        sums = [_sum_of_log_probabilities(model, processor, photo, answer) for photo in photos()]
        found[name] = {"trainer": _first_record(trainer, f"logps/{name}"), "by hand": sum(sums) / len(sums)}
    return found


def supervised():
    """By folder, by number: the trainer's, and that made by hand."""
    found = {}
    for name, folder in (("without", save()), ("with", _with_branch())):
        by_hand = _by_hand(folder)
        numbers = {"sft": _sft(folder, *by_hand), **_dpo(folder, *by_hand)}
        found |= {f"{number} {name} branch": value for number, value in numbers.items()}
    return found
