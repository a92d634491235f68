"""Overlay of `transformers.processing_utils`: what a processor has to say of a call to an image processor of ours."""

from collections.abc import Mapping
from typing import Any

from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import reach, settings


class ProcessorMixin(Overlay):
    """Modifications, all of them for processors of `Qwen2VLImageProcessor` only, which about fifteen families share:

    - `__setattr__` and `__setstate__` (a copy, or one that was pickled) note that it is owned, and so does every call
      of the processor: called on its own it then works as upstream's, to the bit, unless it is asked otherwise;
    - `_merge_kwargs` takes the settings past upstream's check of arguments, from wherever it takes images' arguments;
    - `_process_images` says through which processor the call comes.
    """

    target = "transformers.processing_utils:ProcessorMixin"

    @overrides("name", "value")
    def __setattr__(upstream: Any, self: Any, name: str, value: Any) -> None:  # type: ignore[misc]
        upstream(self, name, value)
        reach.mark_owned(value, reach.Owner.of(self))

    def __setstate__(self: Any, state: Any) -> None:
        reach.restore(self, state)
        for value in self.__dict__.values():
            reach.mark_owned(value, reach.Owner.of(self))

    @overrides()
    def _merge_kwargs(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        image_processor = getattr(self, "image_processor", None)
        if not reach.is_shared(image_processor):
            return upstream(self, *args, **kwargs)
        reach.mark_owned(image_processor, reach.Owner.of(self))  # a subclass may keep it its own way
        declared = (args[0] if args else kwargs.get("ModelProcessorKwargs")) or getattr(
            self, "valid_processor_kwargs", None
        )
        groups = getattr(declared, "__annotations__", {})
        nested = kwargs.get("images_kwargs")
        ours = settings.names_of(image_processor, [*kwargs, *(nested if isinstance(nested, Mapping) else ())])
        of_images = set(ours) & set(settings.names_beside(groups.get("images_kwargs")))
        flat = set(ours) & set(settings.names_beside(declared, *groups.values(), *_of_other_parts(self)))
        given = settings.take(kwargs, flat)
        for group, names in (("images_kwargs", of_images), ("common_kwargs", flat)):
            if isinstance(kwargs.get(group), Mapping):
                kwargs[group] = dict(kwargs[group])
                inner = settings.take(kwargs[group], names)
                twice = sorted(set(given) & set(inner)) if group == "images_kwargs" else []
                if twice:
                    raise ValueError(f"{twice[0]} was passed twice, in images_kwargs and beside it; pass it once")
                given = {**inner, **given}
        try:
            merged = upstream(self, *args, **kwargs)
        except TypeError as error:  # upstream's, as it is, for whoever catches it
            if "unexpected keyword argument" in str(error) and getattr(self, "reads_patch_layouts", False):
                error.add_note(f"The settings of adaptive patches are called {', '.join(settings.DEFAULTS)}.")
            raise
        merged["images_kwargs"].update(given)
        return merged

    @overrides("images")
    def _process_images(upstream: Any, self: Any, images: Any, **kwargs: Any) -> Any:
        image_processor = self.image_processor
        if not reach.is_shared(image_processor):
            return upstream(self, images, **kwargs)
        given = settings.take(kwargs, settings.names_of(image_processor, kwargs))
        return reach.within(reach.Call(image_processor, self, given), upstream, self, images, **kwargs)


def _of_other_parts(processor: Any) -> list[Any]:
    """The declarations of the arguments that a processor's other parts take."""
    parts = (getattr(processor, name, None) for name in ("tokenizer", "video_processor", "feature_extractor"))
    return [getattr(part, "valid_kwargs", None) for part in parts]
