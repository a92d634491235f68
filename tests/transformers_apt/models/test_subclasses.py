"""Image processors derived from upstream's: stock unless asked, and what is asked for is done or refused."""

import contextvars
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import (
    ColQwen2Processor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from transformers_apt.embedded.tiny_checkpoint import build_tokenizer

BUDGET = {"patch_selection_method": "budget", "alpha": 0.3}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


class Kw(ImagesKwargs, total=False):
    """Arguments of its own, and none of ours."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    mood: str


class KwWithAlpha(Kw, total=False):
    """An `alpha` that has nothing to do with ours."""

    alpha: float


def by_position(backend):
    names = [name for name in inspect.signature(backend._preprocess).parameters if name not in ("self", "kwargs")]

    class ByPosition(backend):
        """Spells out and passes on upstream's parameters, as upstream's own subclasses do."""

        def _preprocess(self, images, *args, **kwargs):
            values = [images, *args, *(kwargs.pop(name) for name in names[1 + len(args) :])]
            return super()._preprocess(*values, **kwargs)

    return ByPosition


def own_arguments(backend):
    class OwnArguments(backend):
        valid_kwargs = Kw
        mood = "calm"

    return OwnArguments


def own_alpha(backend):
    class OwnAlpha(backend):
        valid_kwargs = KwWithAlpha
        alpha = 7.5
        seen: ClassVar[list] = []

        def _preprocess(self, images, *args, alpha=None, **kwargs):
            self.seen.append(alpha)
            return super()._preprocess(images, *args, **kwargs)

    return OwnAlpha


def own_preprocess(backend):
    class OwnPreprocess(backend):
        """Takes no arguments that it does not know, as older remote code."""

        def preprocess(self, images, return_tensors=None):
            return super().preprocess(images, return_tensors=return_tensors)

    return OwnPreprocess


def own_call(backend):
    class OwnCall(backend):
        def __call__(self, images, **kwargs):
            return super().__call__(images, **kwargs)

    return OwnCall


def own_equality(backend):
    if backend is Qwen2VLImageProcessor:
        pytest.skip("upstream's torchvision backend keeps them in a cache, and so needs a hash")

    class OwnEquality(backend):
        """Equal to its like, and so without a hash."""

        def __eq__(self, other):
            return type(self) is type(other)

    return OwnEquality


def own_names(backend):
    class OwnNames(backend):
        """Uses our settings' names for things of its own, and declares none of them."""

        importance_method = "votes"

        @property
        def alpha(self):
            raise AssertionError("nobody asked for it")

        def thresholds(self):
            return [1, 2, 3]

    return OwnNames


def own_parameter(backend):
    class OwnParameter(backend):
        """Has a parameter of one of our settings' names, which it does not declare."""

        def preprocess(self, images, alpha=None, thresholds=None, **kwargs):
            assert alpha is None or kwargs.get("patch_selection_method") is None
            return super().preprocess(images, **kwargs)

    return OwnParameter


def own_threads(backend):
    class OwnThreads(backend):
        """Works in threads of its own, which do not inherit context variables."""

        def preprocess(self, *args, **kwargs):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(super().preprocess, *args, **kwargs).result()

    return OwnThreads


KINDS = (
    by_position, own_arguments, own_alpha, own_preprocess, own_call, own_equality, own_names, own_parameter,
    own_threads,
)  # fmt: skip


def alone(image_processor):
    return image_processor


def of(processor_class, video=None):
    def build(image_processor):
        parts = [image_processor, build_tokenizer(), *([] if video is None else [video()])]
        processor = processor_class(*parts)
        text = {} if video is None else {"text": [f"{IMAGE}Hi"]}

        def call(images, **kwargs):
            settings = {name: kwargs.pop(name) for name in list(kwargs) if name != "return_tensors"}
            return processor(images=images, images_kwargs=settings, **text, **kwargs)

        return call

    build.__name__ = processor_class.__name__
    return build


OWNERS = (
    alone,
    of(Qwen2VLProcessor, Qwen2VLVideoProcessor),
    of(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    of(Qwen3VLProcessor, Qwen3VLVideoProcessor),
    of(ColQwen2Processor),
)
SUPPORTED = OWNERS[:2]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
both_backends = pytest.mark.parametrize("backend", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])


def owners(chosen):
    return pytest.mark.parametrize("owner", chosen, ids=lambda owner: owner.__name__)


@every_kind
@both_backends
@owners(OWNERS)
def test_nobody_asked_or_off_is_stock(kind, backend, owner, half_plain, upstream):
    derived = kind(backend)
    if kind is own_preprocess and owner is OWNERS[-1]:
        pytest.skip("ColQwen2Processor passes arguments that this one does not take, on stock as well")
    with upstream():
        expected = owner(derived())(images=half_plain, return_tensors="pt")
    for settings in ({}, {"patch_selection_method": "off"}):
        found = owner(derived())(images=half_plain, return_tensors="pt", **settings)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@every_kind
@both_backends
@owners(SUPPORTED)
def test_asked_for_it_is_done(kind, backend, owner, half_plain):
    if kind is own_threads:
        pytest.skip("its threads do not know their call: see below")
    settings = {"patch_selection_method": "v1"} if kind in (own_alpha, own_names) else BUDGET
    expected = backend()(images=half_plain, return_tensors="pt", **settings)
    by_call = owner(kind(backend)())(images=half_plain, return_tensors="pt", **settings)
    by_attribute = owner(kind(backend)(**settings))(images=half_plain, return_tensors="pt")
    for found in (by_call, by_attribute):
        assert torch.equal(found["image_patch_layout"], expected["image_patch_layout"])
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


@both_backends
def test_an_alpha_of_its_own_stays_its_own(backend, half_plain):
    derived = own_alpha(backend)
    derived()(images=half_plain, alpha=2.5)
    derived(alpha=3.5)(images=half_plain)
    derived()(images=half_plain)
    assert derived.seen == [2.5, 3.5, 7.5]


@both_backends
def test_a_parameter_of_its_own_reaches_it(backend, half_plain):
    class Keeps(backend):
        def preprocess(self, images, alpha=None, thresholds=None, **kwargs):
            self.seen = alpha, thresholds
            return super().preprocess(images, **kwargs)

    derived = Keeps()
    assert "image_patch_layout" not in derived(images=half_plain, alpha="loud", thresholds=3)
    assert derived.seen == ("loud", 3)


@both_backends
def test_threads_of_its_own_get_attributes_and_refuse_what_a_call_names(backend, half_plain):
    """They do not know their call, so what only the call says cannot be done, and is not ignored."""
    derived = own_threads(backend)
    expected = backend()(images=half_plain, **BUDGET)
    found = derived(**BUDGET)(images=half_plain)
    assert np.array_equal(found["image_patch_layout"], expected["image_patch_layout"])
    for image_processor, settings in ((derived(), BUDGET), (derived(**BUDGET), {"patch_selection_method": "off"})):
        with pytest.raises(ValueError, match="copy_context"):
            image_processor(images=half_plain, **settings)


@both_backends
def test_a_thread_never_gets_another_threads_settings(backend, half_plain):
    """One calls with settings, over and over; the other, which owns nothing and asks for nothing, stays as it is."""
    shared, stop = backend(), threading.Event()
    of(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)(shared)

    def ask(alpha):
        counts = set()
        while not stop.is_set() or not counts:
            found = shared(images=half_plain, patch_selection_method="budget", alpha=alpha)
            counts.add(len(found["pixel_values"]))
        return counts

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(ask, alpha) for alpha in (0.1, 0.3)]
        alone = [shared(images=half_plain) for _ in range(20)]
        stop.set()
    assert all("image_patch_layout" not in found and len(found["pixel_values"]) == 192 for found in alone)
    expected = [backend()(images=half_plain, patch_selection_method="budget", alpha=alpha) for alpha in (0.1, 0.3)]
    assert [other.result() for other in others] == [{len(one["pixel_values"])} for one in expected]


def test_a_context_that_outlives_its_call_is_a_fresh_one(half_plain):
    kept = []

    class Keeps(Qwen2VLImageProcessor):
        def _preprocess(self, *args, **kwargs):
            kept.append(contextvars.copy_context())
            return super()._preprocess(*args, **kwargs)

    image_processor = Keeps()
    assert "image_patch_layout" in image_processor(images=half_plain, **BUDGET)
    assert "image_patch_layout" not in kept[0].run(image_processor, images=half_plain)


@both_backends
def test_one_that_cuts_patches_itself_is_refused_when_asked(backend, half_plain):
    class CutsItself(backend):
        def _preprocess(self, images, *args, **kwargs):
            return BatchFeature({"pixel_values": np.zeros((4, 4)), "image_grid_thw": np.array([[1, 2, 2]])})

    assert len(CutsItself()(images=half_plain)["pixel_values"]) == 4
    assert len(CutsItself()(images=half_plain, patch_selection_method="off")["pixel_values"]) == 4
    for use in (
        lambda: CutsItself()(images=half_plain, **BUDGET),
        lambda: CutsItself(**BUDGET)(images=half_plain),
        lambda: CutsItself().preprocess(half_plain, **BUDGET),
        lambda: of(Qwen2VLProcessor, Qwen2VLVideoProcessor)(CutsItself())(images=half_plain, **BUDGET),
    ):
        with pytest.raises(ValueError, match="'budget' with CutsItself, which cuts patches itself, or"):
            use()


@both_backends
def test_a_class_attribute_is_a_setting(backend, half_plain):
    class Off(backend):
        patch_selection_method = "off"

    class Half(backend):
        patch_selection_method = "budget"
        alpha = 0.5

    assert "image_patch_layout" not in Off()(images=half_plain)
    expected = backend()(images=half_plain, patch_selection_method="budget", alpha=0.5)
    assert np.array_equal(Half()(images=half_plain)["image_patch_layout"], expected["image_patch_layout"])


@both_backends
def test_valid_kwargs_is_upstreams(backend, upstream):
    """Upstream's own test compares it with what the module exports."""
    exported = vars(inspect.getmodule(backend))["Qwen2VLImageProcessorKwargs"]
    assert backend.valid_kwargs is exported
    with upstream():
        assert backend.valid_kwargs is exported and "alpha" not in exported.__annotations__


class OwnAlphaProcessor(Qwen2VLProcessor):
    """Hands an `alpha` to its tokenizer."""

    def __call__(self, **kwargs):
        class Text(TextKwargs, total=False):
            alpha: float

        class Mine(ProcessingKwargs, total=False):
            text_kwargs: Text
            _defaults = {}  # noqa: RUF012  # releases before 5.24 want it

        self.merged = self._merge_kwargs(Mine, tokenizer_init_kwargs={}, **kwargs)


def test_an_alpha_of_another_part_of_the_processor(processor):
    mine = OwnAlphaProcessor(processor.image_processor, processor.tokenizer, processor.video_processor)
    mine(alpha=7.0)
    assert mine.merged["text_kwargs"]["alpha"] == 7.0 and "alpha" not in mine.merged["images_kwargs"]
    mine(images_kwargs=BUDGET)
    assert mine.merged["images_kwargs"]["alpha"] == 0.3 and "alpha" not in mine.merged["text_kwargs"]


def test_settings_given_twice_are_refused(processor, prompt, half_plain):
    with pytest.raises(ValueError, match="alpha was passed twice"):
        processor(images=half_plain, text=prompt(), alpha=0.3, images_kwargs=BUDGET)


def test_the_callers_dictionaries_stay_the_callers(processor, prompt, half_plain):
    settings, common = dict(BUDGET), {"return_tensors": "pt", "importance_method": "upsample_mse"}
    processor(images=half_plain, text=prompt(), images_kwargs=settings, common_kwargs=common)
    assert settings == BUDGET and set(common) == {"return_tensors", "importance_method"}


def test_from_pretrained_takes_settings_without_a_word(tmp_path, capfd):
    Qwen2VLImageProcessor().save_pretrained(tmp_path)
    capfd.readouterr()
    made = Qwen2VLImageProcessor.from_pretrained(tmp_path, **BUDGET)
    assert (made.patch_selection_method, made.alpha) == ("budget", 0.3)
    assert capfd.readouterr().err == ""


VIDEO = {"pixel_values_videos", "video_grid_thw"}


def test_model_input_names_are_those_of_the_last_call(processor, prompt, half_plain):
    call = {"images": half_plain, "text": prompt(), "return_tensors": "pt"}
    assert "image_patch_layout" in processor.model_input_names, "what a call would return"
    for settings in ({}, {"patch_selection_method": "off"}, BUDGET):
        output = processor(**call, images_kwargs=settings)
        assert set(output) == set(processor.model_input_names) - VIDEO, settings
    processor.image_processor.patch_selection_method = "off"
    assert set(processor(**call)) == set(processor.model_input_names) - VIDEO
