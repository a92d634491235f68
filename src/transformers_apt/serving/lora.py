"""LoRA on the vision tower: a server that has it takes images of one kind, all with adaptive patches or all without.

vLLM says once a step which rows of which image an adapter is for, and then runs the tower once for each kind of image.
The second kind would be given the rows of the first: an error on some devices, wrong features on others. What a
processor is told does not include LoRA, so it is noted where vLLM lets an architecture see the whole configuration.
"""

from typing import Any

from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

_NOTE = "transformers_apt_tower_lora"


def is_on_tower(model_config: Any) -> bool:
    """Whether the server of this model was started with `--enable-tower-connector-lora`."""
    return bool(getattr(model_config, _NOTE, False))


def note_for(architecture: str) -> None:
    """Have a server's `ModelConfig` say so for `is_on_tower`. Calling it again changes nothing."""
    upstream = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
    if not issubclass(upstream, _Noting):
        MODELS_CONFIG_MAP[architecture] = type(upstream.__name__, (_Noting, upstream), {})


class _Noting(VerifyAndUpdateConfig):
    """To be put in front of what vLLM does with an architecture's configuration."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        super().verify_and_update_config(vllm_config)
        lora = vllm_config.lora_config
        setattr(vllm_config.model_config, _NOTE, lora is not None and lora.enable_tower_connector_lora)
