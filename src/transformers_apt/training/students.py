"""What of a model practises: the branch for coarse patches, or, to compare with, LoRA on its tower and merger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Named = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Student:
    """A way to practise.

    Attributes:
        begin: `(model, processor)` to the model with what practises, everything else frozen.
        as_teacher: while open, the model answers as it did before, at full resolution.
        save: `(model, processor, folder)`, what has practised.
    """

    begin: Callable[[Any, Any], Any]
    as_teacher: Callable[[Any], AbstractContextManager[Any]]
    save: Callable[[Any, Any, Path], None]


def _begin_branch(model: Any, processor: Any) -> Any:
    from transformers_apt.training import add_branch

    add_branch(model)
    processor.image_processor.patch_parts = True
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("branch" in name)
    return model


def _save_branch(model: Any, processor: Any, folder: Path) -> None:
    from transformers_apt.training import save

    save(model, folder)


def _begin_lora(model: Any, processor: Any, rank: int = 8) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LoRA needs PEFT: pip install 'transformers-apt[train]'", name="peft") from error
    inside = f"{_name_of(model, model.model.visual)}."
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and inside in name]
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear))


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _save_lora(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)


STUDENTS: Mapping[str, Student] = {
    # the teacher reads base patches only, and these do not pass the branch
    "branch": Student(_begin_branch, lambda model: nullcontext(), _save_branch),
    "lora": Student(_begin_lora, lambda model: model.disable_adapter(), _save_lora),
}
