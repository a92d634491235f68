"""The teacher: the same model at full resolution. Its answers, and how likely it found every token on the way.

Axis legend: `a` tokens of an answer, `k` of the vocabulary's tokens, the likeliest ones at each place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor
from transformers import GenerationConfig

from transformers_apt.training.files import replace

MOST_LIKELY = 512
"""So many tokens are kept by name at each place, the rest as one sum: exact for a small vocabulary, and a few hundred
bytes a token for a large one."""

FULL_RESOLUTION = {"patch_selection_method": "off"}


@dataclass(frozen=True)
class Answer:
    """What the teacher answered.

    Attributes:
        tokens: `(a,)` int64, the end token among them where it was reached.
        likely: `(a, k)` int64, the likeliest tokens at each place.
        log_probabilities: `(a, k)` float32, theirs, in nats.
    """

    tokens: Tensor
    likely: Tensor
    log_probabilities: Tensor

    def save(self, file: Path) -> None:
        """Whole, or not at all."""
        tensors = {name: value.contiguous() for name, value in vars(self).items()}
        replace(file, as_bytes(tensors | {"likely": self.likely.int().contiguous()}))

    @classmethod
    def load(cls, file: Path) -> Answer:
        """One that `save` wrote."""
        found = load_file(file)
        return cls(found["tokens"], found["likely"].long(), found["log_probabilities"])


def chat_prompt(processor: Any, prompt: str) -> str:
    """The text of a prompt about one picture, up to where the answer begins."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    return str(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


@contextmanager
def _greedy(model: Any) -> Iterator[None]:
    """While open, a model generates the likeliest tokens: its own settings, such as a penalty on repetition, would
    have the answers of two calls differ that agree on how likely every token is."""
    owner = getattr(model, "get_base_model", lambda: model)()  # PEFT's wrapper passes the call on
    own = owner.generation_config
    tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    owner.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        owner.generation_config = own


@torch.no_grad()
def answer(model: Any, inputs: Any, max_new_tokens: int) -> list[Answer]:
    """Greedy answers to a batch of prompts, padded on the left, that were preprocessed at full resolution."""
    end = model.generation_config.eos_token_id
    ends = torch.as_tensor([] if end is None else end).reshape(-1)
    was_training = model.training
    model.eval()
    with _greedy(model):
        out = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    model.train(was_training)
    logits = torch.stack(out.logits, dim=1).float().cpu()  # (batch, a, vocabulary)
    tokens = out.sequences[:, -logits.shape[1] :].cpu()
    found = []
    for row, row_logits in zip(tokens, logits, strict=True):
        over = torch.isin(row, ends).nonzero()
        length = int(over[0]) + 1 if len(over) else len(row)
        every = row_logits[:length].log_softmax(-1)
        most = every.topk(min(MOST_LIKELY, every.shape[-1]), dim=-1)
        found.append(Answer(row[:length], most.indices, most.values))
    return found


def divergence(logits: Tensor, taught: Answer) -> Tensor:
    """`(a,)` Kullback-Leibler divergence of a student from the teacher at each token of the answer, in nats.

    Args:
        logits: `(a, vocabulary)`, the student's.
        taught: the teacher's.

    Tokens that the teacher's answer does not name count together, as one.
    """
    every = logits.float().log_softmax(-1)
    student = every.gather(-1, taught.likely.to(logits.device))  # (a, k)
    teacher = taught.log_probabilities.to(logits.device)
    found = (teacher.exp() * (teacher - student)).sum(-1)
    if taught.likely.shape[-1] < every.shape[-1]:
        rest, rest_student = (1 - named.exp().sum(-1) for named in (teacher, student))
        rest, rest_student = rest.clamp(min=1e-7), rest_student.clamp(min=1e-7)
        found = found + rest * (rest.log() - rest_student.log())
    return found


def join(students: Sequence[Any], answers: Sequence[Answer], pad_token_id: int) -> dict[str, Tensor]:
    """One batch of prompts of one picture each, continued by the teacher's answers and padded on the left.

    Args:
        students: what the processor returned for each, with a batch of one.
        answers: one each.
    """
    per_token = {"input_ids": pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    continued: dict[str, list[Tensor]] = {name: [] for name in per_token}
    for inputs, taught in zip(students, answers, strict=True):
        added = {"input_ids": taught.tokens, "attention_mask": torch.ones_like(taught.tokens)}
        for name in per_token:
            more = added.get(name, torch.zeros_like(taught.tokens))
            continued[name].append(torch.cat([inputs[name][0], more]))
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(rows, True, per_token[name], padding_side="left")
        for name, rows in continued.items()
    }
    per_picture = [name for name in students[0] if name not in per_token]
    return batch | {name: torch.cat([inputs[name] for inputs in students]) for name in per_picture}
