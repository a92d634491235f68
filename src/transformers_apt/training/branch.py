"""Putting a branch on a model, taking it off, saving and loading it: a folder as small as a PEFT adapter's.

A model with a branch is also saved and loaded whole, by `save_pretrained` and `from_pretrained`: its config says that
the tower has one. Without this package the same checkpoint loads without the branch.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from transformers_apt import __version__
from transformers_apt.engine.patching import status
from transformers_apt.models.branch import CONFIG_KEY, FORMULA, branch_of, build, check_formula
from transformers_apt.models.families import SUPPORTED, no_such_checkpoint
from transformers_apt.training.card import CARD
from transformers_apt.training.files import read_json, replace

FOLDER = "branch"
"""Where `load` looks in a checkpoint's folder: `save(model, f"{checkpoint}/branch")` puts it there."""

CONFIG = "branch_config.json"
WEIGHTS = "branch.safetensors"

PEFT_COPY = re.compile(r"\.(?:original_module|modules_to_save\.([^.]+))(?=\.)")
"""In a weight's name: which of PEFT's copies of a module it is in. The original is in no adapter."""

Folder = str | os.PathLike[str]


def add_branch(model: nn.Module, processor: Any = None) -> nn.Module:
    """Give the vision tower of a model a new branch. It starts at zero: until it has learned, no output changes.

    Which weights learn is the caller's choice; all others keep their `requires_grad`. The names of the branch's have
    `.branch.` in them. From then on coarse patches are read with their parts, and refused without.

    Args:
        model: of a family that reads adaptive patches, also one wrapped by PEFT, with its tower on a real device.
        processor: of the model. It is told to make the parts: `processor.image_processor.patch_parts = True`.

    Returns:
        The branch, on the tower's device and in its type; `.float()` it to learn in float32 beside a bfloat16 model.

    Raises:
        TypeError: a model without a tower that reads adaptive patches; or what is not a model's processor.
        ValueError: it has a branch already, or its tower is on the device "meta".
    """
    _check_processor(processor)
    tower = tower_of(model)
    if branch_of(tower) is not None:
        raise ValueError(f"this {type(model).__name__} has a branch already; take it off first, with remove(model)")
    if tower.device.type == "meta":
        raise ValueError(
            "the vision tower is on the device 'meta'; expected a real one: load the model without offloading it"
        )
    branch = build(tower).to(device=tower.device, dtype=tower.dtype)
    branch.train(tower.training)
    tower.branch = branch
    for config in _configs_of(model, tower):
        setattr(config, CONFIG_KEY, FORMULA)
    if processor is not None:
        processor.image_processor.patch_parts = True
    return branch


def remove(model: nn.Module, processor: Any = None) -> None:
    """Take the branch off a model, which is then as it was before `add_branch` or `load`.

    Args:
        model: with a branch.
        processor: which stops to make the parts.

    Raises:
        TypeError: a model without a tower that reads adaptive patches; or what is not a model's processor.
        ValueError: it has no branch.
    """
    _check_processor(processor)
    tower = _with_branch(model)
    del tower.branch
    for config in _configs_of(model, tower):
        if hasattr(config, CONFIG_KEY):
            delattr(config, CONFIG_KEY)
    if processor is not None:
        vars(processor.image_processor).pop("patch_parts", None)


def save(model: nn.Module, folder: Folder, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write a model's branch to a folder: `branch.safetensors`, `branch_config.json` and a model card.

    Args:
        model: with a branch. Of those in PEFT's adapters, the active one's.
        folder: made where it is missing. A model card that is there already stays.
        state_dict: the weights of the whole model where they are not all in this process, as
            `accelerator.get_state_dict(model)` gathers them.

    Raises:
        TypeError: a model without a tower that reads adaptive patches.
        ValueError: it has no branch, or `state_dict` has none; or its weights lie elsewhere.
    """
    tower = _with_branch(model)
    sizes = _sizes_of(model, tower)
    weights = _weights_in(model.state_dict() if state_dict is None else state_dict, _adapter_in(model))
    if weights.keys() != _without_weights(tower).state_dict().keys():
        raise ValueError(
            f"a state dict with {sorted(weights) or 'nothing'} of the branch; expected that of the whole model"
        )
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError("the branch is on the device 'meta'; expected a real one: pass state_dict, with its weights")
    config = {"formula": FORMULA, **sizes, "base_model_name_or_path": _name_of(model)}
    config["transformers_apt_version"] = __version__
    path = Path(folder)
    replace(path / WEIGHTS, as_bytes(weights, metadata={"format": "pt"}))
    replace(path / CONFIG, json.dumps(config, indent=2) + "\n")
    if not (path / "README.md").exists():
        replace(path / "README.md", CARD.format(**config))


def load(model: nn.Module, folder: Folder, processor: Any = None) -> nn.Module:
    """Give a model a branch that was saved.

    Args:
        model: of the same family and size, without a branch.
        folder: where `save` put it; or a checkpoint's folder that has it in `branch`; or a hub id of either.
        processor: as in `add_branch`.

    Returns:
        The branch, on the tower's device and in its type.

    Raises:
        OSError: no branch there.
        TypeError: a model without a tower that reads adaptive patches; or what is not a model's processor.
        ValueError: the branch is another model's, or of another formula, or damaged; or the model has one already.
    """
    _check_processor(processor)
    tower = tower_of(model)
    config = read_json(_file(folder, CONFIG))
    check_formula(config.get("formula"))
    expected = _sizes_of(model, tower)
    found = {name: config.get(name) for name in expected}
    if found != expected:
        raise ValueError(
            f"the branch in {os.fspath(folder)} is for {found}, the model is {expected}; load it into "
            f"{config.get('base_model_name_or_path') or 'the model that it was trained on'}"
        )
    weights = _read_weights(_file(folder, WEIGHTS))
    branch = add_branch(model)
    try:
        branch.load_state_dict(weights)
    except RuntimeError as error:
        remove(model)
        raise ValueError(f"the weights in {os.fspath(folder)} are not a branch's: {error}") from error
    if processor is not None:
        processor.image_processor.patch_parts = True
    return branch


def _check_processor(processor: Any) -> None:
    """Before anything is changed.

    Raises:
        TypeError: it has no image processor to tell.
    """
    if processor is not None and not hasattr(processor, "image_processor"):
        raise TypeError(
            f"processor is a {type(processor).__name__}: expected the model's processor, as AutoProcessor loads it"
        )


def tower_of(model: nn.Module) -> Any:
    """The tower of a model, however deep it is wrapped.

    Raises:
        TypeError: there is none that reads adaptive patches.
    """
    tower: Any = next((module for module in model.modules() if hasattr(module, "mixed_scale_forward")), None)
    if tower is None:
        why = status().reason or "; ".join({reason: None for reason in status().families.values() if reason})
        raise TypeError(
            f"a {type(model).__name__} has no vision tower that reads adaptive patches; expected a model of "
            f"{SUPPORTED}{f' ({why})' if why else ''}"
        )
    if not _is_wrapper(tower):
        return tower
    adapter = _adapter_in(model)
    return tower.original_module if adapter is None else tower.modules_to_save[adapter]


def _is_wrapper(module: Any) -> bool:
    """Whether it is what PEFT puts around a module that is trained whole (`modules_to_save`): a copy per adapter."""
    return "modules_to_save" in getattr(module, "_modules", {})


def _adapter_in(model: nn.Module) -> str | None:
    """The adapter whose copies of whole modules compute now."""
    wrapper: Any = next(filter(_is_wrapper, model.modules()), None)
    return next(iter(wrapper.active_adapters), None) if wrapper is not None else None


def _with_branch(model: nn.Module) -> Any:
    """The tower of a model with a branch.

    Raises:
        ValueError: it has none.
    """
    tower = tower_of(model)
    if branch_of(tower) is None:
        raise ValueError(
            f"this {type(model).__name__} has no branch; add_branch(model) or load(model, folder) gives it one"
        )
    return tower


def _configs_of(model: nn.Module, tower: Any) -> list[Any]:
    """The tower's config, wherever the model has it."""
    configs = [getattr(config, "vision_config", None) for config in _all_configs(model)]
    unique = {id(config): config for config in [tower.config, *configs] if config is not None}
    return list(unique.values())


def _without_weights(tower: Any) -> nn.Module:
    """A branch of a tower's size without weights."""
    with torch.device("meta"):
        return build(tower)


def _sizes_of(model: nn.Module, tower: Any) -> dict[str, Any]:
    """What a model has to have in common with the one that a branch was trained on.

    Raises:
        TypeError: a tower alone.
    """
    configs = [config for config in _all_configs(model) if hasattr(config, "vision_config")]
    if not configs:
        raise TypeError(f"a {type(model).__name__} is a part of a model; expected the whole of it")
    return {
        "family": configs[0].model_type,
        "patch_size": tower.config.patch_size,
        "width": tower.patch_embed.embed_dim,
        "text_width": configs[0].get_text_config().hidden_size,
    }


def _name_of(model: nn.Module) -> str:
    return next((config._name_or_path for config in _all_configs(model) if config._name_or_path), "")


def _all_configs(model: nn.Module) -> Iterator[Any]:
    """From the outside in: what wraps a model has none, or the model's."""
    found = (getattr(module, "config", None) for module in model.modules())
    return (config for config in found if isinstance(config, PreTrainedConfig))


def _weights_in(state_dict: Mapping[str, Tensor], adapter: str | None) -> dict[str, Tensor]:
    """A branch's weights by its own names, out of a whole model's: of PEFT's copies those of an adapter."""
    found = {}
    for name, value in state_dict.items():
        if any(copy.group(1) != adapter for copy in PEFT_COPY.finditer(name)):
            continue
        _, inside, rest = PEFT_COPY.sub("", name).rpartition(".branch.")
        if inside:
            found[rest] = value if value.is_meta else value.detach().contiguous().cpu()
    return found


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def _file(folder: Folder, name: str) -> Path:
    """A file of a saved branch.

    Raises:
        OSError: it is not there.
    """
    problem = no_such_checkpoint(os.fspath(folder))
    if problem:
        raise FileNotFoundError(problem)
    for subfolder in ("", FOLDER):
        path = cached_file(folder, name, subfolder=subfolder, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return Path(path)
    raise FileNotFoundError(
        f"{os.fspath(folder)} has no {name}, nor {FOLDER}/{name}; expected what transformers_apt.training.save wrote"
    )
