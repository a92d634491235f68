"""Programs in whose processes the package default stays off, and why: one row each.

They count an image's rows or placeholders from `image_grid_thw`, or they produce figures that are compared with those
of stock transformers. What is asked for explicitly is done, or, where a program cannot read it, refused.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A row of the table.

    Attributes:
        name: what people call it.
        why: completes the sentence "it …".
        reads_layouts: it hands everything that the processor returned on to the model, so that an explicit setting
            works. Where it does not, an explicit setting is refused when this program is the caller.
    """

    name: str
    why: str
    reads_layouts: bool = False


_CUTS_ROWS = "cuts pixel_values by image_grid_thw"
_COUNTS_PLACEHOLDERS = "counts an image's placeholders from image_grid_thw"

PROGRAMS: Mapping[str, Program] = {
    "vllm": Program("vLLM", _CUTS_ROWS),
    "sglang": Program("SGLang", _CUTS_ROWS),
    "lmdeploy": Program("LMDeploy", _COUNTS_PLACEHOLDERS),
    "llamafactory": Program("LLaMA-Factory", _COUNTS_PLACEHOLDERS),
    "swift.template": Program("ms-swift", _COUNTS_PLACEHOLDERS),
    "trl.trainer.grpo_trainer": Program("TRL's GRPOTrainer", _CUTS_ROWS),
    "trl.trainer.rloo_trainer": Program("TRL's RLOOTrainer", _CUTS_ROWS),
    "trl.trainer.distillation_trainer": Program("TRL's DistillationTrainer", _CUTS_ROWS),
    "trl.experimental.online_dpo.online_dpo_trainer": Program(
        "TRL's OnlineDPOTrainer", "hands pixel_values and image_grid_thw on by name, and nothing else"
    ),
    "verl": Program("verl", _COUNTS_PLACEHOLDERS),
    "tensorrt_llm": Program("TensorRT-LLM", _COUNTS_PLACEHOLDERS),
    "mlx_vlm": Program("MLX-VLM", "has a vision tower of its own"),
    "optimum.intel": Program("Optimum Intel", "has a vision tower of its own"),
    **{
        module: Program(name, "measures what is compared with full resolution", reads_layouts=True)
        for module, name in (
            ("lmms_eval", "lmms-eval"),
            ("lm_eval", "lm-evaluation-harness"),
            ("vlmeval", "VLMEvalKit"),
            ("lighteval", "Lighteval"),
            ("opencompass", "OpenCompass"),
            ("evalscope", "EvalScope"),
        )
    },
    **{
        module: Program(name, "would train on patches that nobody asked for", reads_layouts=True)
        for module, name in (
            ("trl", "TRL"),
            ("axolotl", "Axolotl"),
            ("unsloth", "Unsloth"),
            ("openrlhf", "OpenRLHF"),
            ("xtuner", "XTuner"),
        )
    },
    **{
        module: Program(name, "would embed images otherwise than those of an index built before", reads_layouts=True)
        for module, name in (("sentence_transformers", "Sentence Transformers"), ("mteb", "MTEB"))
    },
    **{
        module: Program(name, "would calibrate on patches that nobody asked for", reads_layouts=True)
        for module, name in (("llmcompressor", "LLM Compressor"), ("gptqmodel", "GPTQModel"))
    },
}
"""By the name of a module that is imported where the program is used; submodules belong to it."""

_CANNOT_READ_LAYOUTS = frozenset(module for module, program in PROGRAMS.items() if not program.reads_layouts)

READS_LAYOUTS_FOR_VLLM = "transformers_apt.serving."
"""The plugin's modules: what they have a processor do, the plugin's models can read."""


def loaded_program() -> Program | None:
    """The first program of the table that this process has imported."""
    return next((program for module, program in PROGRAMS.items() if sys.modules.get(module)), None)


def calling_program() -> Program | None:
    """The program among our callers that cannot read a layout."""
    loaded = sys.modules.keys() & _CANNOT_READ_LAYOUTS
    frame = sys._getframe(1) if loaded else None
    found = None
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(READS_LAYOUTS_FOR_VLLM):
            return None
        for module in loaded if found is None else ():
            if name == module or name.startswith(f"{module}."):
                found = PROGRAMS[module]
        frame = frame.f_back
    return found
