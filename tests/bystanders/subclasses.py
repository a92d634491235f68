"""Image processors that somebody derived from Qwen2-VL's, on their own and inside a processor."""

import torch
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs

from tests.bystanders.tiny import IMAGE, build, digest, photos

BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)


def _outputs(*classes):
    """Of each class: called directly, and through the processor to the model."""
    found = {}
    for image_processor_class in classes:
        parts, model = build()
        image_processor = image_processor_class()
        alone = image_processor(images=photos(), return_tensors="pt")
        processor = Qwen2VLProcessor(image_processor, parts.tokenizer, parts.video_processor)
        inputs = processor(images=photos(), text=f"{IMAGE}{IMAGE}Hi", return_tensors="pt")
        owned = image_processor(photos(), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        name = image_processor_class.__bases__[0].__name__
        found[name] = digest({"alone": alone, "inputs": inputs, "owned": owned, "logits": logits})
    return found


def _by_position():
    """Passes upstream's parameters of `_preprocess` by position, as upstream's own subclasses once did."""

    def derive(backend):
        class ByPosition(backend):
            def _preprocess(self, images, do_resize, size, resample, *arguments, **kwargs):
                output = super()._preprocess(images, do_resize, size, resample, *arguments, **kwargs)
                output["pixel_values"] = output["pixel_values"] * 2
                return output

        return ByPosition

    def all_by_position(backend):
        class AllByPosition(backend):
            def _preprocess(self, images, **kwargs):
                import inspect

                names = list(inspect.signature(backend._preprocess).parameters)[2:]
                named = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
                order = [named.pop(name) for name in names if name in named]
                return super()._preprocess(images, *order, **named, **kwargs)

        return AllByPosition

    return {
        "some": _outputs(*map(derive, BACKENDS)),
        "all": _outputs(*map(all_by_position, BACKENDS)),
    }


def _own_valid_kwargs():
    """Takes arguments of its own, and no others than upstream's beside them."""

    class Kwargs(ImagesKwargs, total=False):
        min_pixels: int
        max_pixels: int
        patch_size: int
        temporal_patch_size: int
        merge_size: int
        gain: float

    def derive(backend):
        class OwnKwargs(backend):
            valid_kwargs = Kwargs
            gain = 1.0

            def _preprocess(self, images, gain, **kwargs):
                output = super()._preprocess(images, **kwargs)
                output["pixel_values"] = output["pixel_values"] * gain
                return output

        return OwnKwargs

    return _outputs(*map(derive, BACKENDS))


def _own_call():
    """Overrides `__call__` and `preprocess`, counts rows from the grid, and returns what it made of them."""

    def derive(backend):
        class OwnCall(backend):
            def __call__(self, images, *arguments, **kwargs):
                return self.preprocess(images, *arguments, **kwargs)

            def preprocess(self, images, return_tensors=None, do_resize=True):
                output = super().preprocess(images, return_tensors=return_tensors, do_resize=do_resize)
                rows = output["pixel_values"].split(output["image_grid_thw"].prod(-1).tolist())
                return BatchFeature({**output, "pixel_values": torch.cat([image.flip(0) for image in rows])})

        return OwnCall

    return _outputs(*map(derive, BACKENDS))


def outputs():
    return {"by position": _by_position(), "own arguments": _own_valid_kwargs(), "own call": _own_call()}


def plain():
    """Not a bystander: plain transformers code, which the package default does reach."""
    processor, model = build()
    inputs = processor(images=photos(), text=f"{IMAGE}{IMAGE}Hi", return_tensors="pt")
    with torch.no_grad():
        return digest({**inputs, "logits": model(**inputs).logits})
