"""What of a model practises: the branch for coarse patches, or, to compare with, LoRA on its tower and merger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from transformers_apt.models.branch import branch_of
from transformers_apt.training.branch import add_branch, save, tower_of


@dataclass(frozen=True)
class Student:
    """A way to practise.

    Attributes:
        begin: `(model, processor)` to the model with what practises, everything else frozen.
        as_teacher: while open, the model answers as it did before, at full resolution.
        save: `(model, folder, state dict of the whole model)`: writes what has practised.
    """

    begin: Callable[[Any, Any], Any]
    as_teacher: Callable[[Any], AbstractContextManager[Any]]
    save: Callable[[Any, Path, Mapping[str, Tensor]], None]


def _begin_branch(model: Any, processor: Any) -> Any:
    model.requires_grad_(False)
    branch = branch_of(tower_of(model))
    if branch is None:
        branch = add_branch(model, processor)
    else:  # it practises on
        processor.image_processor.patch_parts = True
    branch.float().requires_grad_(True)
    return model


LORA_RANK = 8


def _begin_lora(model: Any, processor: Any) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LoRA needs PEFT: pip install 'transformers-apt[train]'", name="peft") from error
    inside = f"{_name_of(model, model.model.visual)}."
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and inside in name]
    return get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=linear))


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _save_lora(model: Any, folder: Path, state_dict: Mapping[str, Tensor]) -> None:
    model.save_pretrained(folder, state_dict=state_dict)


STUDENTS: Mapping[str, Student] = {
    # the teacher reads base patches only, and these do not pass the branch
    "branch": Student(_begin_branch, lambda model: nullcontext(), save),
    "lora": Student(_begin_lora, lambda model: model.disable_adapter(), _save_lora),
}
