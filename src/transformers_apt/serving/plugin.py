"""The entry point of `vllm.general_plugins`: vLLM calls `register` in each of its processes.

It imports no model: vLLM does that later, from the names registered here, in the processes that hold one.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping

from transformers_apt.engine.startup import is_switched_off
from transformers_apt.serving import contracts

logger = logging.getLogger("vllm.plugins.transformers_apt")

ARCHITECTURES: Mapping[str, str] = {
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5",
}
"""The module of `serving/models` that has the class, by a checkpoint's architecture; vLLM's is called the same."""


def register() -> None:
    """Put our models in the places of vLLM's, those of them whose originals are as they are expected.

    Nothing asked for, they are vLLM's own, bit for bit. On a vLLM that is not known nothing is registered, and what
    `models.programs` says of programs that cannot read layouts holds. Calling it again changes nothing.
    """
    if is_switched_off():
        return
    try:
        wrong = contracts.problems(set(ARCHITECTURES.values()))
    except Exception as error:  # a plugin must not take its host down
        wrong = {contracts.EVERY_FAMILY: f"{type(error).__name__}: {error}"}
    if contracts.EVERY_FAMILY in wrong:
        _warn(f"Adaptive patches stay off in this vLLM, which works as without them: {wrong[contracts.EVERY_FAMILY]}")
        return
    if wrong:
        _warn(f"Adaptive patches stay off for some models, which vLLM serves as without them: {wrong}")

    from vllm import ModelRegistry

    from transformers_apt.serving import lora

    for architecture, module in ARCHITECTURES.items():
        if module not in wrong:
            lora.note_for(architecture)
            ModelRegistry.register_model(architecture, f"{__package__}.models.{module}:{architecture}")


def _warn(message: str) -> None:
    """Once for a server: not in the processes that it starts."""
    if multiprocessing.parent_process() is None:
        logger.warning("%s (transformers-apt; TRANSFORMERS_APT=0 silences this.)", message)
