"""Overlay of `transformers.generation.utils`: what a model of another family says of a layout."""

from typing import Any

from transformers_apt.engine.overlay import Overlay, overrides
from transformers_apt.models.families import SUPPORTED
from transformers_apt.models.layouts import LAYOUT_KEY


class GenerationMixin(Overlay):
    """Modifications:

    - `_validate_model_kwargs`, where upstream refuses a layout as unknown, says what it is and what to do.
    """

    target = "transformers.generation.utils:GenerationMixin"

    @overrides("model_kwargs")
    def _validate_model_kwargs(upstream: Any, self: Any, model_kwargs: dict[str, Any]) -> None:
        try:
            upstream(self, model_kwargs)
        except ValueError as error:
            if LAYOUT_KEY not in str(error):
                raise
            raise ValueError(
                f"{type(self).__name__} cannot read {LAYOUT_KEY}: adaptive patches are supported for {SUPPORTED} "
                "only. Preprocess with patch_selection_method='off', or leave the setting out"
            ) from error
