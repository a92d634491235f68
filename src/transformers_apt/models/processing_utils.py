"""Overlay of `transformers.processing_utils`: what a processor has to say of a call to an image processor of ours."""

from collections.abc import Mapping
from typing import Any

from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models import reach, settings


class ProcessorMixin(Overlay):
    """Modifications, all of them for processors of `Qwen2VLImageProcessor` only, which about fifteen families share:

    - `__setattr__` and `__setstate__` (a copy, or one that was pickled) note that it is owned: called on its own it
      then works as upstream's, to the bit, unless it is asked otherwise;
    - `_merge_kwargs` takes the settings past upstream's check of arguments, from wherever it takes images' arguments;
    - `_process_images` says through which processor the call comes.
    """

    target = "transformers.processing_utils:ProcessorMixin"

    @overrides("name", "value")
    def __setattr__(upstream: Any, self: Any, name: str, value: Any) -> None:  # type: ignore[misc]
        upstream(self, name, value)
        if name == "image_processor":
            reach.mark_owned(value)

    def __setstate__(self: Any, state: Any) -> None:
        # as object restores it: a dictionary, or one and another of what lies in slots
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        self.__dict__.update(attributes or {})
        for name, value in (slots or {}).items():
            object.__setattr__(self, name, value)
        reach.mark_owned(self.__dict__.get("image_processor"))

    @overrides()
    def _merge_kwargs(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        image_processor = getattr(self, "image_processor", None)
        if not reach.is_shared(image_processor):
            return upstream(self, *args, **kwargs)
        given = settings.take(image_processor, kwargs)
        for group in ("images_kwargs", "common_kwargs"):
            if isinstance(kwargs.get(group), Mapping):
                kwargs[group] = dict(kwargs[group])
                nested = settings.take(image_processor, kwargs[group])
                twice = sorted(set(given) & set(nested)) if group == "images_kwargs" else []
                if twice:
                    raise ValueError(f"{twice[0]} was passed twice, in images_kwargs and beside it; pass it once")
                given = {**nested, **given}
        merged = upstream(self, *args, **kwargs)
        merged["images_kwargs"].update(given)
        return merged

    @overrides("images")
    def _process_images(upstream: Any, self: Any, images: Any, **kwargs: Any) -> Any:
        image_processor = self.image_processor
        if not reach.is_shared(image_processor):
            return upstream(self, images, **kwargs)
        given = settings.take(image_processor, kwargs)
        with reach.calling(reach.Call(image_processor, self, given)):
            return upstream(self, images, **kwargs)
