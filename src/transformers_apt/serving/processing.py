"""What the multi-modal processors of all families do beside vLLM's: settings, fields, and the length of an image.

Axis legend: `n` patches of all images.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import Qwen2VLImageProcessor
from vllm.multimodal.inputs import MultiModalFieldConfig

from transformers_apt.engine.patching import status
from transformers_apt.models import reach, settings
from transformers_apt.models.branch import CONFIG_KEY
from transformers_apt.models.layouts import COUNTS_KEY, LAYOUT_KEY
from transformers_apt.models.settings import DEFAULTS, METHOD, OFF
from transformers_apt.serving import items, lora

IMAGES_KWARGS = "images_kwargs"


class AdaptiveProcessor:
    """To be put in front of a family's processor in vLLM. Modifications:

    - `apply` reads a request's settings, those of the server, of the checkpoint and of the environment, checks them,
      and names them all in `images_kwargs`. vLLM hashes those together with an image, for its caches of processed and
      of encoded images and of prefixes, so that one setting never gets what another one made. A request for which
      nobody asked for anything stays as it is;
    - profiling (`get_dummy_inputs`) is done at full resolution, because vLLM's blank picture would become few patches
      and hide the memory that a detailed one takes;
    - a checkpoint with a branch inside is refused, and parts of coarse patches, which a branch reads, are not made;
    - images whose patches are chosen are normalised here, not on the device: a coarse patch is an average, no byte;
    - an image's rows and its placeholders are as many as its layout says.
    """

    info: Any

    # ---------------------------------------------------------------- settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.info.ctx.model_config.hf_config
        if getattr(getattr(config, "vision_config", None), CONFIG_KEY, None) is not None:
            raise ValueError(
                "this checkpoint has a branch for coarse patches, which vLLM cannot compute; take it out "
                "(transformers_apt.training.remove(model), then model.save_pretrained) and serve what is left"
            )
        # A server whose own settings cannot be used shall not start. They are checked before vLLM makes a processor
        # with them, which would say something else.
        settings.check_selection(**_take(Qwen2VLImageProcessor, self._of_server)[0])
        self._name_settings({})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        named = self._name_settings(inputs.hf_processor_mm_kwargs)
        return super().apply(replace(inputs, hf_processor_mm_kwargs=named), timing_ctx)  # type: ignore[misc]

    def get_dummy_inputs(self, seq_len: int, mm_counts: Any, mm_options: Any) -> Any:
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)  # type: ignore[misc]
        inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, IMAGES_KWARGS: {METHOD: OFF}}
        return inputs

    def _name_settings(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request's arguments with all settings named, or as they are where nobody asked for anything.

        Raises:
            TypeError, ValueError: settings that cannot be used, or not on this server.
        """
        processor = self.info.get_hf_processor()
        server = _take(processor.image_processor, self._of_server)[0]
        given, rest = _take(processor.image_processor, request)
        resolved = settings.resolve(processor.image_processor, given, OFF, server)
        if lora.is_on_tower(self.info.ctx.model_config):
            of_server = settings.resolve(processor.image_processor, {}, OFF, server)
            _refuse_another_kind(resolved.method, of_server.method)
        if not resolved.anything:
            return request
        if server.get("patch_parts") or given.get("patch_parts"):
            raise ValueError(
                "patch_parts=True on a vLLM server: they are for a model with a branch, which vLLM cannot compute; "
                "leave the argument out"
            )
        if resolved.method != OFF:
            self._refuse(resolved, processor)
        named: dict[str, Any] = dict.fromkeys(DEFAULTS)  # what this method does not read shall not come from elsewhere
        named |= {name: tuple(value) if isinstance(value, list) else value for name, value in resolved.used.items()}
        named["patch_parts"] = False  # also where the checkpoint's processor says otherwise, for a branch beside it
        return {**rest, IMAGES_KWARGS: {**rest.get(IMAGES_KWARGS, {}), **named}}

    @property
    def _of_server(self) -> Mapping[str, Any]:
        return self.info.ctx.get_mm_config().mm_processor_kwargs or {}

    def _refuse(self, resolved: settings.Resolved, processor: Any) -> None:
        """Say of a server why it cannot do what is asked for, if so.

        Raises:
            ValueError: so it is.
        """
        config = self.info.ctx.get_mm_config()
        reason = None
        if not reach.is_supported(processor):
            reason = f"{type(processor).__name__} is without them, {status().reason or status().families}"
        elif config.mm_encoder_tp_mode == "data":
            reason = "with --mm-encoder-tp-mode data vLLM deals images out by their grids; leave it at weights"
        elif config.is_multimodal_pruning_enabled():
            reason = "with video pruning vLLM places an image's tokens by its grid; leave the pruning rate out"
        if reason is not None:
            raise ValueError(
                f"{METHOD}={resolved.method!r} on a server that cannot read adaptive patches: {reason}, or pass "
                f"{METHOD}={OFF!r}"
            )

    # ---------------------------------------------------------------- the call of transformers' processor

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        images = dict(hf_kwargs.get(IMAGES_KWARGS) or {})
        process = super()._apply_hf_processor_main  # type: ignore[misc]
        if images.setdefault(METHOD, OFF) == OFF:  # said here, so that transformers does not look for a default
            return process(mm_items, {**hf_kwargs, IMAGES_KWARGS: images})
        if not self.info.ctx.get_mm_config().mm_device_do_normalize:
            return process(mm_items, hf_kwargs)
        on_host = mm_items.select(mm_items.keys() & {"image"})
        outputs = super(AdaptiveProcessor, self._on_host)._apply_hf_processor_main(on_host, hf_kwargs)  # type: ignore[misc]
        others = mm_items.select(mm_items.keys() - {"image"})
        if others:
            outputs.update(process(others, hf_kwargs))
        return outputs

    @cached_property
    def _on_host(self) -> "AdaptiveProcessor":
        """This processor where vLLM's normalisation on the device is off."""
        here = copy.copy(self)
        here.info = copy.copy(self.info)
        config = copy.copy(self.info.ctx.model_config)
        config.multimodal_config = copy.copy(config.multimodal_config)
        config.multimodal_config.mm_device_do_normalize = False
        here.info.ctx = replace(self.info.ctx, model_config=config)
        return here

    # ---------------------------------------------------------------- what vLLM makes of its outputs

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        if LAYOUT_KEY not in hf_inputs:
            return fields
        counts = hf_inputs[COUNTS_KEY]
        return {
            **fields,
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", counts),
            LAYOUT_KEY: MultiModalFieldConfig.flat_from_sizes("image", counts, keep_on_cpu=True),
            COUNTS_KEY: MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        return [_shorten(update, out_mm_kwargs) if update.modality == "image" else update for update in updates]


def _refuse_another_kind(method: str, of_server: str) -> None:
    """Say of a server with LoRA on the tower why a request's images must be of its own kind, if they are not.

    Raises:
        ValueError: they are not.
    """
    if (method == OFF) != (of_server == OFF):
        raise ValueError(
            f"{METHOD}={method!r} on a server with --enable-tower-connector-lora and {METHOD}={of_server!r}: there "
            f"vLLM can read images with adaptive patches, or images without ({OFF!r}), but not both; give the server "
            "the one or the other with --mm-processor-kwargs"
        )


def _shorten(update: Any, out_mm_kwargs: Any) -> Any:
    """vLLM's replacement of an image's placeholder, with as many of its tokens as the image's layout has."""

    def replacement(index: int) -> Any:
        upstream = update.replacement(index)
        layout = items.layout_of(out_mm_kwargs["image"][index])
        return upstream if layout is None else upstream[: layout.num_language_tokens]

    return replace(update, replacement=replacement)


def _take(image_processor: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings among a request's or a server's arguments, in `images_kwargs` or beside it, and the others.

    Raises:
        ValueError: one is in both places, or the method in a third.
        TypeError: `images_kwargs` is no mapping.
    """
    rest = dict(arguments)
    for name, value in rest.items():
        if name != IMAGES_KWARGS and isinstance(value, Mapping) and METHOD in value:
            raise ValueError(f"{METHOD} was passed in {name}; pass it in {IMAGES_KWARGS}")
    flat = settings.take(rest, settings.names_of(image_processor, rest))
    images = rest.get(IMAGES_KWARGS)
    if images is None:
        return flat, rest
    if not isinstance(images, Mapping):
        raise TypeError(f"{IMAGES_KWARGS}={images!r}: expected one object, which is for all images of a request")
    rest[IMAGES_KWARGS] = dict(images)
    nested = settings.take(rest[IMAGES_KWARGS], settings.names_of(image_processor, rest[IMAGES_KWARGS]))
    twice = sorted(flat.keys() & nested.keys())
    if twice:
        raise ValueError(f"{twice[0]} was passed twice, in images_kwargs and beside it; pass it once")
    return {**flat, **nested}, rest
