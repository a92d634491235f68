"""The web page's model: one question at a time, its answer as it comes, with tokens and times."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, TextIteratorStreamer

from transformers_apt.models.stats import patch_stats


@dataclass(frozen=True)
class Answer:
    """An answer so far. Times are milliseconds since the question was taken up, preprocessing included.

    Attributes:
        text: what has been generated.
        vision_patches, language_tokens: of the image.
        prompt_tokens: in all, the image's language tokens included.
        new_tokens: generated so far.
        preprocessing: time until the processor was done.
        first_token: time until the first token, `None` before it.
        total: time until now, or until the end.
        done: whether this is the end.
    """

    text: str
    vision_patches: int
    language_tokens: int
    prompt_tokens: int
    new_tokens: int
    preprocessing: float
    first_token: float | None
    total: float
    done: bool


class Answerer:
    """A loaded model that any number of threads may ask; they wait for each other.

    Args:
        model, processor: as `demo.load_checkpoint` returns them.
        max_new_tokens: where an answer is cut off.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        #: Held while the processor works, here and by whoever else uses it: warnings are caught per process.
        self.preprocessing = threading.Lock()
        self.generating = threading.Lock()

    def stream(self, picture: Image.Image, question: str, settings: dict[str, Any]) -> Iterator[Answer]:
        """The answer as it grows; the last one is `done`. Closing the iterator stops the model.

        Args:
            picture: the image.
            question: in plain text; the model's special tokens are refused.
            settings: the `images_kwargs`.

        Raises:
            ValueError: a question or settings that cannot be used.
        """
        # in a question they would open another image or another turn
        found = [token for token in self.processor.tokenizer.all_special_tokens if token in question]
        if found:
            raise ValueError(f"the question contains {found[0]}, a special token of the model; ask in plain words")
        run = _Run(self, picture, question, settings)
        # the thread holds the locks, so that a reader who never comes back cannot keep them
        threading.Thread(target=run.work, daemon=True).start()
        text = ""
        try:
            for piece in run.streamer:
                if run.failure is not None:
                    break  # the last piece is an empty one, and there may be no figures to go with it
                text += piece
                yield run.answer(text, done=False)
        finally:
            run.stop.asked = True
        if run.failure is not None:
            raise run.failure
        yield run.answer(text, done=True)


class _Run:
    """One question on its way through processor and model."""

    def __init__(self, answerer: Answerer, picture: Image.Image, question: str, settings: dict[str, Any]) -> None:
        self.answerer = answerer
        self.picture = picture
        self.question = question
        self.settings = settings
        self.streamer = _TimedStreamer(answerer.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stop = _Stop()
        self.failure: BaseException | None = None
        self.start = self.preprocessed = 0.0
        self.prompt_tokens = 0
        self.stats: dict[str, Any] = {}

    def work(self) -> None:
        """To be run in a thread of its own; what fails is kept for the reader."""
        try:
            with self.answerer.generating:
                if not self.stop.asked:
                    self._generate()
        except BaseException as error:
            self.failure = error
        finally:
            self.streamer.on_finalized_text("", stream_end=True)

    def _generate(self) -> None:
        model, processor = self.answerer.model, self.answerer.processor
        content = [{"type": "image"}, {"type": "text", "text": self.question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        self.start = time.perf_counter()
        with self.answerer.preprocessing:
            inputs = processor(images=self.picture, text=text, images_kwargs=self.settings, return_tensors="pt")
        inputs = inputs.to(model.device)
        self.preprocessed = time.perf_counter()
        self.prompt_tokens = inputs["input_ids"].shape[1]
        self.stats = patch_stats(inputs, processor.image_processor.patch_size)[0]
        options = {"max_new_tokens": self.answerer.max_new_tokens, "do_sample": False}
        model.generate(**inputs, **options, streamer=self.streamer, stopping_criteria=[self.stop])

    def answer(self, text: str, done: bool) -> Answer:
        """With the tokens and times so far."""
        moments = list(self.streamer.moments)
        return Answer(
            text=text,
            vision_patches=self.stats["vision_patches"],
            language_tokens=self.stats["language_tokens"],
            prompt_tokens=self.prompt_tokens,
            new_tokens=len(moments),
            preprocessing=(self.preprocessed - self.start) * 1e3,
            first_token=(moments[0] - self.start) * 1e3 if moments else None,
            total=(time.perf_counter() - self.start) * 1e3,
            done=done,
        )


class _TimedStreamer(TextIteratorStreamer):
    """Notes when each new token came; the text itself only comes at the end of words."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.moments: list[float] = []

    def put(self, value: Any) -> None:
        if not self.next_tokens_are_prompt:
            self.moments.append(time.perf_counter())
        super().put(value)


class _Stop(StoppingCriteria):
    """Ends the generation when asked."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.asked, dtype=torch.bool, device=input_ids.device)
