"""What the plugin relies on in vLLM, and whether it is there.

vLLM's sources are read, not imported: importing its models takes seconds, and may wake a GPU in a process that must
not touch it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

SUPPORTED = ((0, 32), (0, 33))
"""The releases that are tested, or whose sources equal a tested one's in everything that is relied on."""

EVERY_FAMILY = "every family"
"""Stands for all of them, in `RELIES_ON` and in what `problems` finds."""

_PROCESSING = "multimodal/processing"
_MODELS = "model_executor/models"
_FAMILY_MODEL = (
    "_parse_and_validate_image_input(kwargs)",
    "_process_image_input(image_input)",
    "get_mrope_input_positions(input_tokens, mm_features)",
    "get_mm_lora_token_counts(modality, mm_kwargs, num_mm_embeds)",
    "get_encoder_cudagraph_config()",
)
_FAMILY_PROCESSOR = (
    "_get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)",
    "_get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)",
)
_BLOCK = "forward(x, cu_seqlens, rotary_pos_emb_cos, rotary_pos_emb_sin, max_seqlen"
_QWEN3_TOWER = tuple(
    f"{_MODELS}/qwen3_vl.py Qwen3_VisionTransformer.{name}"
    for name in (
        "patch_embed", "pos_embed", "rotary_pos_emb", "blocks", "merger", "deepstack_visual_indexes",
        "deepstack_merger_list", "attn_backend", "hidden_size", "tp_size", "fp8_padded_hidden_size", "dtype", "device",
    )
) + (f"{_MODELS}/qwen3_vl.py Qwen3_VisionBlock.{_BLOCK}, sequence_lengths)",)  # fmt: skip
_QWEN3 = (
    *_QWEN3_TOWER,
    *(f"{_MODELS}/qwen3_vl.py Qwen3VLForConditionalGeneration.{name}" for name in _FAMILY_MODEL),
    *(f"{_MODELS}/qwen3_vl.py Qwen3VLMultiModalProcessor.{name}" for name in _FAMILY_PROCESSOR),
    f"{_MODELS}/qwen3_vl.py Qwen3VLDummyInputsBuilder",
)

RELIES_ON: Mapping[str, tuple[str, ...]] = {
    EVERY_FAMILY: (
        f"{_PROCESSING}/processor.py BaseMultiModalProcessor.apply(inputs, timing_ctx)",
        f"{_PROCESSING}/processor.py BaseMultiModalProcessor.get_dummy_inputs(seq_len, mm_counts, mm_options)",
        f"{_PROCESSING}/processor.py BaseMultiModalProcessor._apply_hf_processor_main(mm_items, hf_kwargs)",
        f"{_PROCESSING}/processor.py PromptReplacement.replacement",
        f"{_PROCESSING}/inputs.py ProcessorInputs.hf_processor_mm_kwargs",
        f"{_PROCESSING}/context.py InputProcessingContext.model_config",
        f"{_PROCESSING}/context.py BaseProcessingInfo.get_hf_processor(kwargs)",
        "multimodal/inputs.py MultiModalFieldConfig.flat_from_sizes(modality, size_per_item, keep_on_cpu)",
        "multimodal/inputs.py MultiModalFieldConfig.batched(modality, keep_on_cpu)",
        "multimodal/inputs.py MultiModalFeatureSpec.mm_position",
        "multimodal/inputs.py PlaceholderRange.offset",
        "multimodal/inputs.py PlaceholderRange.length",
        "multimodal/parse.py MultiModalDataItems.select(modalities)",
        "config/multimodal.py MultiModalConfig.mm_processor_kwargs",
        "config/multimodal.py MultiModalConfig.mm_device_do_normalize",
        "config/multimodal.py MultiModalConfig.mm_encoder_tp_mode",
        "config/multimodal.py MultiModalConfig.is_multimodal_pruning_enabled()",
        "config/lora.py LoRAConfig.enable_tower_connector_lora",
        "config/vllm.py VllmConfig.lora_config",
        "config/vllm.py VllmConfig.try_verify_and_update_config()",
        f"{_MODELS}/config.py MODELS_CONFIG_MAP",
        f"{_MODELS}/config.py VerifyAndUpdateConfig.verify_and_update_config(vllm_config)",
        "model_executor/layers/rotary_embedding/base.py RotaryEmbeddingBase._compute_inv_freq(base)",
        "model_executor/layers/rotary_embedding/base.py RotaryEmbeddingBase.cos_sin_cache",
        "v1/worker/encoder_cudagraph_defs.py EncoderCudaGraphConfig.modalities",
        "model_executor/layers/attention/mm_encoder_attention.py MMEncoderAttention.compute_max_seqlen("
        "attn_backend, cu_seqlens)",
        "model_executor/layers/attention/mm_encoder_attention.py MMEncoderAttention.maybe_compute_seq_lens("
        "attn_backend, cu_seqlens, device)",
        "model_executor/layers/attention/mm_encoder_attention.py MMEncoderAttention.maybe_recompute_cu_seqlens("
        "attn_backend, cu_seqlens, hidden_size, tp_size, device, fp8_padded_hidden_size)",
    ),
    "qwen2_vl": (
        *(f"{_MODELS}/qwen2_vl.py Qwen2VLForConditionalGeneration.{name}" for name in _FAMILY_MODEL),
        *(f"{_MODELS}/qwen2_vl.py Qwen2VLMultiModalProcessor.{name}" for name in _FAMILY_PROCESSOR),
        *(
            f"{_MODELS}/qwen2_vl.py Qwen2VisionTransformer.{name}"
            for name in ("patch_embed", "rotary_pos_emb", "blocks", "merger", "dtype", "device")
        ),
        f"{_MODELS}/qwen2_vl.py Qwen2VisionTransformer.compute_attn_mask_seqlen(cu_seqlens)",
        f"{_MODELS}/qwen2_vl.py Qwen2VisionBlock.{_BLOCK})",
        f"{_MODELS}/qwen2_vl.py Qwen2VLProcessingInfo",
        f"{_MODELS}/qwen2_vl.py Qwen2VLDummyInputsBuilder",
    ),
    "qwen2_5_vl": (
        *(f"{_MODELS}/qwen2_5_vl.py Qwen2_5_VLForConditionalGeneration.{name}" for name in _FAMILY_MODEL),
        *(f"{_MODELS}/qwen2_5_vl.py Qwen2_5_VLMultiModalProcessor.{name}" for name in _FAMILY_PROCESSOR),
        *(
            f"{_MODELS}/qwen2_5_vl.py Qwen2_5_VisionTransformer.{name}"
            for name in (
                "patch_embed", "rotary_pos_emb", "blocks", "merger", "dtype", "device", "window_size", "patch_size",
                "fullatt_block_indexes", "attn_backend", "hidden_size", "tp_size", "fp8_padded_hidden_size",
            )
        ),
        f"{_MODELS}/qwen2_5_vl.py Qwen2_5_VisionBlock.{_BLOCK}, sequence_lengths)",
        f"{_MODELS}/qwen2_5_vl.py Qwen2_5_VLProcessingInfo",
        f"{_MODELS}/qwen2_5_vl.py Qwen2_5_VLDummyInputsBuilder",
        f"{_MODELS}/utils.py cast_overflow_tensors(tensors)",
    ),
    "qwen3_vl": (*_QWEN3, f"{_MODELS}/qwen3_vl.py Qwen3VLProcessingInfo"),
    "qwen3_vl_moe": (
        *_QWEN3,
        f"{_MODELS}/qwen3_vl_moe.py Qwen3VLMoeForConditionalGeneration",
        f"{_MODELS}/qwen3_vl_moe.py Qwen3VLMoeProcessingInfo",
    ),
    "qwen3_5": (
        *_QWEN3,
        f"{_MODELS}/qwen3_5.py Qwen3_5ForConditionalGeneration",
        f"{_MODELS}/qwen3_5.py Qwen3_5MoeForConditionalGeneration",
        f"{_MODELS}/qwen3_5.py Qwen3_5ProcessingInfo",
        f"{_MODELS}/qwen3_5.py Qwen3_5MoeProcessingInfo",
    ),
}  # fmt: skip
"""By family: `file.py Class` or a variable, `file.py Class.attribute`, `file.py Class.method(parameters in use)`."""


def problems(families: Collection[str], version: str | None = None, root: Path | None = None) -> dict[str, str]:
    """Why adaptive patches cannot be had here: a sentence by family, or one for `EVERY_FAMILY`; empty if they can.

    Args:
        families: those to ask for.
        version, root: of another vLLM than the installed one, and the folder of its sources.
    """
    if version is None:
        import vllm

        version = str(vllm.__version__)
    if not _is_supported(version):
        releases = " and ".join(".".join(map(str, release)) for release in SUPPORTED)
        return {EVERY_FAMILY: f"it is vLLM {version}, and releases {releases} are supported"}
    if root is None:
        spec = importlib.util.find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            return {EVERY_FAMILY: "its sources cannot be found"}
        root = Path(spec.submodule_search_locations[0])
    sources = _Sources(root)
    found = {}
    for family in (EVERY_FAMILY, *sorted(families)):
        missing = [entry for entry in RELIES_ON[family] if not sources.has(entry)]
        if missing:
            found[family] = f"vLLM {version} is not as expected, it lacks {'; '.join(missing)}"
    return found


def _is_supported(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) in SUPPORTED


class _Sources:
    """The classes, functions and variables of vLLM's files, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._trees: dict[str, dict[str, ast.AST]] = {}

    def has(self, entry: str) -> bool:
        """Whether an entry of `RELIES_ON` is there."""
        file, _, rest = entry.partition(" ")
        path, _, parameters = rest.partition("(")
        owner, _, name = path.partition(".")
        node = self._definitions(file).get(owner)
        if node is not None and name:
            node = dict(_members(node)).get(name)
        if node is None or not parameters:
            return node is not None
        wanted = {parameter.strip() for parameter in parameters.rstrip(")").split(",") if parameter.strip()}
        return isinstance(node, ast.FunctionDef) and wanted <= _parameters(node)

    def _definitions(self, file: str) -> dict[str, ast.AST]:
        if file not in self._trees:
            path = self.root / file
            tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
            classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
            self._trees[file] = dict(_members(tree)) | classes
        return self._trees[file]


def _members(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Functions and variables of a class or a file, and what a class's methods use of `self`."""
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id, child
        elif isinstance(child, ast.Assign):
            yield from ((target.id, child) for target in child.targets if isinstance(target, ast.Name))
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
            yield inner.attr, inner
    for child in getattr(node, "body", ()):  # last, so that a method wins over an attribute of its name
        if isinstance(child, ast.FunctionDef):
            yield child.name, child


def _parameters(node: ast.FunctionDef) -> set[str]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return {argument.arg for argument in (*named, arguments.vararg, arguments.kwarg) if argument is not None}
