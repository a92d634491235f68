"""Overlay of `transformers.processing_utils`: only Qwen2-VL's own processor feeds a model that reads mixed scales."""

from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from transformers_apt.models.qwen2_vl.selection import DEFAULTS, OFF
from transformers_apt.overlay import Overlay, overrides

SUPPORTED_FAMILIES = ("Qwen2-VL (Qwen2VLProcessor)",)


class ProcessorMixin(Overlay):
    """Modifications:

    - `_process_images`: about fifteen model families share `Qwen2VLImageProcessor`. Through the processor of any
      family but Qwen2-VL it works as upstream's, to the bit, and a request for adaptive patches is an error. Through a
      subclass of `Qwen2VLProcessor`, whose author may count patches from the grid, it works as upstream's unless the
      call names a setting or the image processor has another one than the default.
    """

    target = "transformers.processing_utils:ProcessorMixin"

    @overrides("images")
    def _process_images(upstream: Any, self: Any, images: Any, **kwargs: Any) -> Any:
        image_processor = self.image_processor
        shared = isinstance(image_processor, (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil))
        if not shared or type(self) is Qwen2VLProcessor:
            return upstream(self, images, **kwargs)
        asked = kwargs.get("patch_selection_method")
        own = {name: getattr(image_processor, name, default) for name, default in DEFAULTS.items()}
        if asked is None and (own != DEFAULTS or any(kwargs.get(name) is not None for name in DEFAULTS)):
            asked = own["patch_selection_method"]
        if asked not in (None, OFF) and not isinstance(self, Qwen2VLProcessor):
            raise ValueError(
                f"patch_selection_method={asked!r} with {type(self).__name__}: adaptive patches are supported for "
                f"{', '.join(SUPPORTED_FAMILIES)} only; leave the argument out, or pass {OFF!r}"
            )
        kwargs["patch_selection_method"] = asked or OFF
        return upstream(self, images, **kwargs)
