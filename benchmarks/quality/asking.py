"""A checkpoint that answers batches of questions by the public path, in this process or in several at once."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.quality.candidates import extra_importance
from benchmarks.quality.items import Item, from_file, generated
from benchmarks.quality.settings import Setting, downscaled, scaled

#: A setting, the places of the items to ask, and what a downscale has at least of each.
Task = tuple[Setting, list[int], list[int] | None]
#: Answers, vision patches and language tokens, each one per item.
Found = tuple[list[str], list[int], list[int]]
Asking = Callable[[Sequence[Task]], Iterable[Found]]


def items_of(options: argparse.Namespace) -> list[Item]:
    """The questions that the options name."""
    if options.questions:
        return from_file(options.questions, options.images)
    return generated(options.count, options.seed)


def with_adapter(model: Any, processor: Any, folder: str) -> Any:
    """A model with what has practised: a branch, or what PEFT saved."""
    if (Path(folder) / "adapter_config.json").exists():
        from peft import PeftModel

        return PeftModel.from_pretrained(model, folder).merge_and_unload()
    from transformers_apt import training

    training.load(model, folder, processor)
    return model


class Subject:
    """A checkpoint, answering questions under one setting after another."""

    def __init__(self, folder: str, device: str, dtype: str, new_tokens: int, adapter: str | None = None) -> None:
        import transformers_apt

        transformers_apt.apply()
        from transformers_apt.embedded.asking import load_checkpoint

        torch.backends.cudnn.allow_tf32 = False  # float32 shall be float32 on every device
        self.model, self.processor = load_checkpoint(folder, device, dtype)
        image_processor = self.processor.image_processor
        if adapter is not None:
            self.model = with_adapter(self.model, self.processor, adapter)
        self.cell = image_processor.patch_size * image_processor.merge_size
        self.processor.tokenizer.padding_side = "left"
        self.new_tokens = new_tokens

    def ask(self, items: list[Item], task: Task) -> Found:
        """Asks one batch of the items."""
        setting, chosen, least = task
        images, kwargs = [items[index].load() for index in chosen], dict(setting.images_kwargs)
        if least is not None:
            per_cell = 4 if setting.equal == "patches" else 1
            images = [
                downscaled(image, -(-size // per_cell), self.cell) for image, size in zip(images, least, strict=True)
            ]
        if setting.area < 1:
            images = [scaled(image, setting.area, self.cell) for image in images]
        if least is not None or setting.area < 1:
            kwargs["size"] = {"shortest_edge": self.cell**2, "longest_edge": self.cell**2 * 16384}
        return self.answer(images, [items[index].question for index in chosen], kwargs)

    def answer(self, images: list[Image.Image], questions: list[str], images_kwargs: dict[str, Any]) -> Found:
        """Answers, vision patches and language tokens, each one per picture."""
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = self.processor(
            text=texts, images=images, images_kwargs=images_kwargs, padding=True, return_tensors="pt"
        ).to(self.model.device)
        grids = inputs["image_grid_thw"]
        patches = inputs.get("image_patch_counts", grids.prod(-1)).tolist()
        tokens = (inputs["input_ids"] == self.model.config.image_token_id).sum(1).tolist()
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True), patches, tokens


@contextmanager
def answering(options: argparse.Namespace, items: list[Item]) -> Iterator[Asking]:
    """While open, what answers tasks in order: this process, or `options.processes` others."""
    if options.processes == 1:
        subject = _subject(options)
        with extra_importance():
            yield lambda tasks: (subject.ask(items, task) for task in tasks)
        return
    # each begins anew and draws the questions again: a process with a GPU or threads cannot be copied
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, _begin, (options, torch.get_num_threads())) as pool:
        yield lambda tasks: pool.imap(_answer, tasks)


def _subject(options: argparse.Namespace) -> Subject:
    return Subject(options.model, options.device, options.dtype, options.new_tokens, options.adapter)


_of_this_process: dict[str, Any] = {}
"""What a process of the pool asks, and whom; empty elsewhere."""


def _begin(options: argparse.Namespace, threads: int) -> None:
    torch.set_num_threads(threads)
    _of_this_process["options"] = options


def _answer(task: Task) -> Found:
    here = _of_this_process
    if "items" not in here:  # not in `_begin`: a pool starts processes for ever where that fails
        here["subject"], here["items"] = _subject(here["options"]), items_of(here["options"])
        extra_importance().__enter__()
    return here["subject"].ask(here["items"], task)
