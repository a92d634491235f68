"""What each override takes for granted about upstream, one test per member, run on upstream as it is.

When a new transformers breaks one of these, the sentence says what the patch relied on.
"""

import functools
import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)
from transformers.image_processing_utils import BatchFeature
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.processing_utils import ProcessorMixin

from transformers_apt.engine import finder, patching
from transformers_apt.models.upstream import CACHE_NAMES

BACKENDS = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)
SETTINGS = (
    "patch_selection_method", "alpha", "importance_method", "thresholds", "drop_tolerance", "predict_tolerance",
    "max_language_tokens", "patch_parts",
)  # fmt: skip
RELIED_ON: dict[str, list[str]] = {}
"""Member -> the tests that hold what is relied on."""


def relies_on(*members):
    def note(test):
        for member in members:
            RELIED_ON.setdefault(member, []).append(test.__name__)
        return test

    return note


def of_both(member):
    return [f"{backend.__name__}.{member}" for backend in BACKENDS]


@pytest.fixture(autouse=True)
def stock(upstream):
    with upstream():
        yield


@pytest.fixture
def heard(monkeypatch):
    """`heard(cls, name)`: the calls of a method, as bound arguments, while it does its work."""

    def listen(cls, name):
        calls, original = [], getattr(cls, name)

        @functools.wraps(original)  # `generate` reads the signatures
        def method(self, *args, **kwargs):
            arguments = inspect.signature(original).bind(self, *args, **kwargs).arguments
            arguments.update(arguments.pop("kwargs", {}))
            calls.append({name: dict(value) if type(value) is dict else value for name, value in arguments.items()})
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, method)
        return calls

    return listen


@pytest.fixture
def stock_inputs(processor, prompt, half_plain):
    return processor(images=half_plain, text=prompt(), return_tensors="pt")


def parameters(method):
    return list(inspect.signature(method).parameters)


@relies_on(*(name for setting in SETTINGS for name in of_both(setting)), *of_both("last_budget_info"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_settings_names_are_free(backend):
    for name in (*SETTINGS, "last_budget_info"):
        assert not hasattr(backend, name), f"{backend.__name__} has a {name!r} of its own: ours would hide it"


@relies_on(*of_both(SETTINGS[0]), *of_both("__init__"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_constructor_sets_what_it_does_not_know(backend):
    made = backend(mood="wild")
    assert made.mood == "wild", "the constructor no longer sets every argument as an attribute"
    assert made.to_dict()["mood"] == "wild", "to_dict, and so save_pretrained, no longer keeps it"
    assert "mood" not in backend.valid_kwargs.__annotations__


@relies_on(*of_both("from_dict"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_from_dict_makes_one_of_a_dictionary_that_is_the_callers_own(backend):
    saved = {"patch_size": 14, "mood": "wild"}
    assert backend.from_dict(saved).mood == "wild" and saved == {"patch_size": 14, "mood": "wild"}


@relies_on(*of_both("from_pretrained"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_from_pretrained_reads_its_part_of_a_processors_file(backend, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2VLProcessor" and "processor_class" not in saved["image_processor"]
    made, unused = backend.from_pretrained(tmp_path, return_unused_kwargs=True, mood="wild")
    assert type(made) is backend and unused == {"mood": "wild"}


@relies_on(*of_both("__getstate__"), *of_both("__setstate__"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_processors_state_is_its_attributes(backend):
    assert backend.__getstate__ is object.__getstate__ and not hasattr(backend, "__setstate__")
    assert backend(mood="wild").__getstate__() == vars(backend(mood="wild"))


@relies_on("GenerationMixin._validate_model_kwargs")
def test_generate_refuses_what_no_method_takes(model, stock_inputs):
    with pytest.raises(ValueError, match="mood"):
        model.generate(**stock_inputs, mood=torch.ones(1), max_new_tokens=1)


@relies_on(*of_both("__call__"), *of_both("preprocess"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_is_preprocess_and_checks_its_arguments(backend, half_plain, heard):
    calls = heard(backend, "preprocess")
    backend()(images=half_plain, patch_size=14)
    assert calls[0]["patch_size"] == 14, "__call__ no longer hands its arguments to preprocess by name"
    with pytest.raises((TypeError, StrictDataclassError)):
        backend()(images=half_plain, mood="wild")


@relies_on("ProcessorMixin.__setattr__", "ProcessorMixin.__setstate__")
def test_a_processor_keeps_its_parts_as_attributes(processor):
    assert ProcessorMixin.__setattr__ is object.__setattr__, "the mixin has a __setattr__ of its own"
    assert not hasattr(object, "__setstate__") and not hasattr(ProcessorMixin, "__setstate__")
    assert vars(processor)["image_processor"] is processor.image_processor
    assert vars(pickle.loads(pickle.dumps(processor)))["image_processor"].patch_size == 14


@relies_on("ProcessorMixin._merge_kwargs")
def test_merge_kwargs_sorts_a_calls_arguments(processor, prompt, half_plain, monkeypatch):
    merged, merge = [], ProcessorMixin._merge_kwargs

    def method(self, *args, **kwargs):
        merged.append((kwargs["images_kwargs"], merge(self, *args, **kwargs)))
        return merged[-1][1]

    monkeypatch.setattr(ProcessorMixin, "_merge_kwargs", method)
    processor(images=half_plain, text=prompt(), images_kwargs={"patch_size": 14}, padding=True)
    ((given, found),) = merged
    assert given == {"patch_size": 14}, "a call's images_kwargs no longer come as they are"
    assert found["images_kwargs"]["patch_size"] == 14 and found["text_kwargs"]["padding"] is True
    with pytest.raises((TypeError, StrictDataclassError)):
        processor(images=half_plain, text=prompt(), images_kwargs={"mood": "wild"})


@relies_on(*of_both("_preprocess"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_preprocess_gets_channels_first_images_and_every_argument_by_name(backend, heard, half_plain):
    calls = heard(backend, "_preprocess")
    output = backend()(images=[half_plain, half_plain], return_tensors="pt")
    (call,) = calls
    kind = torch.Tensor if backend is Qwen2VLImageProcessor else np.ndarray
    assert [type(image) for image in call["images"]] == [kind] * 2, "the images are no longer a list of the backend's"
    assert tuple(call["images"][0].shape) == (3, 168, 224), "the images are no longer channels first, not yet resized"
    expected = {
        *("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
        *("patch_size", "temporal_patch_size", "merge_size", "return_tensors"),
    }
    assert expected <= set(call), f"_preprocess no longer gets {expected - set(call)}"
    assert isinstance(output, BatchFeature) and set(output) == {"pixel_values", "image_grid_thw"}
    assert output["pixel_values"].shape == (2 * 12 * 16, 3 * 2 * 14 * 14), "the rows have another layout"
    assert output["image_grid_thw"].tolist() == [[1, 12, 16]] * 2, "the grid is no longer (1, h, w) in base patches"


@relies_on("ProcessorMixin._process_images")
def test_process_images_calls_the_image_processor_with_the_calls_arguments(processor, prompt, half_plain, heard):
    assert parameters(ProcessorMixin._process_images) == ["self", "images", "kwargs"]
    assert "_process_images" not in vars(Qwen2VLProcessor), "Qwen2VLProcessor has its own: the mixin's is not asked"
    calls = heard(ProcessorMixin, "_process_images")
    processor(images=half_plain, text=prompt(), images_kwargs={"patch_size": 14}, return_tensors="pt")
    assert len(calls) == 1 and calls[0]["patch_size"] == 14, "images_kwargs no longer reach _process_images by name"


@pytest.mark.every_family
@relies_on("Processor.replace_image_token")
def test_replace_image_token_makes_one_placeholder_per_merged_cell(processor, prompt, half_plain, photos, heard):
    calls = heard(type(processor), "replace_image_token")
    output = processor(images=[half_plain, photos[1]], text=prompt(2), return_tensors="pt")
    assert [call["image_idx"] for call in calls] == [0, 1], "it is no longer asked once per image, in order"
    assert all(call["image_inputs"]["image_grid_thw"] is not None for call in calls), "without the processed images"
    cells = [int(grid.prod()) // 4 for grid in output["image_grid_thw"]]
    texts = [processor.replace_image_token(dict(output), image_idx=i) for i in range(2)]
    assert texts == [processor.image_token * count for count in cells]
    assert int((output["input_ids"] == processor.image_token_id).sum()) == sum(cells)


@pytest.mark.every_family
@relies_on("Processor.model_input_names")
def test_model_input_names_is_a_property_with_the_image_inputs(processor):
    assert isinstance(inspect.getattr_static(type(processor), "model_input_names"), property)
    assert {"pixel_values", "image_grid_thw"} <= set(processor.model_input_names)


@pytest.mark.every_family
@relies_on("VisionTower.forward")
def test_the_towers_parts_are_where_the_mixed_scale_tower_takes_them(model, stock_inputs):
    tower = model.model.visual
    assert parameters(tower.forward)[:2] == ["hidden_states", "grid_thw"]
    blocks, merger = [], []
    for block in tower.blocks:
        block.register_forward_pre_hook(lambda _, args, kwargs: blocks.append((args, kwargs)), with_kwargs=True)
    tower.merger.register_forward_pre_hook(lambda _, args: merger.append(args))
    with torch.no_grad():
        output = tower(stock_inputs["pixel_values"], grid_thw=stock_inputs["image_grid_thw"])
    assert {"cu_seqlens", "max_seqlen", "position_embeddings"} <= set(blocks[0][1]), "the blocks take other arguments"
    h, w = stock_inputs["image_grid_thw"][0, 1:].tolist()
    whole = blocks[getattr(tower, "fullatt_block_indexes", [0])[0]][1]
    assert whole["cu_seqlens"].tolist() == [0, h * w], "attention segments are no longer one per image"
    (cos, _) = blocks[0][1]["position_embeddings"]
    centres = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).float()
    cells = centres.view(h // 2, 2, w // 2, 2, 2).transpose(1, 2).reshape(-1, 2)  # the order of merge cells
    again, _ = tower.rotary_pos_emb(stock_inputs["pixel_values"], cells)
    if hasattr(tower, "window_size"):  # there the blocks see the order of the windows
        assert torch.equal(*(rows[rows.argsort(0)[:, 0]].sort(0).values for rows in (cos, again)))
    else:
        assert torch.equal(cos, again), "rotary_pos_emb no longer takes (row, column) pairs in upstream's order"
    assert len(output.last_hidden_state) == h * w, "a row is no longer a patch"
    assert len(output.pooler_output) == h * w // 4, "four rows no longer merge to one"


@pytest.mark.parametrize("family", ["qwen2_5_vl"], scope="session")
@relies_on("Qwen2_5_VLVisionAttention.forward")
def test_windows_are_attended_to_by_these_projections_this_rotation_and_sdpa(model):
    tower = model.model.visual
    attention = tower.blocks[0].attn
    assert parameters(attention.forward)[:3] == ["hidden_states", "cu_seqlens", "position_embeddings"]
    assert attention.config._attn_implementation == "sdpa", "no longer what a model attends with by itself"
    rows = torch.randn(12, attention.qkv.in_features, generator=torch.Generator().manual_seed(0))
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4)).float()
    turn = tower.rotary_pos_emb(rows, cells)
    cu_seqlens = torch.tensor([0, 6, 12], dtype=torch.int32)
    with torch.no_grad():
        found = attention(rows, cu_seqlens=cu_seqlens, position_embeddings=turn)
        query, key, value = attention.qkv(rows).view(12, 3, attention.num_heads, -1).unbind(1)
        query, key = modeling_qwen2_5_vl.apply_rotary_pos_emb_vision(query, key, *turn)
        both = [states.view(2, 6, attention.num_heads, -1).transpose(1, 2) for states in (query, key, value)]
        output = torch.nn.functional.scaled_dot_product_attention(*both, scale=attention.scaling)
        expected = attention.proj(output.transpose(1, 2).reshape(12, -1))
    torch.testing.assert_close(found, expected)
    assert attention.attention_dropout == 0.0


@pytest.mark.every_family
@relies_on("VisionTower.__init__", "VisionTower._init_weights")
def test_a_tower_is_built_of_its_config_and_a_module_is_initialised_after_those_inside_it(model):
    tower = model.model.visual
    assert parameters(type(tower).__init__)[1] == "config" and tower.config is model.config.vision_config
    assert not hasattr(tower, "branch") and not hasattr(tower.config, "patch_branch"), "a name of ours is taken"
    rows = torch.zeros(2, tower.config.in_channels * tower.config.temporal_patch_size * tower.config.patch_size**2)
    assert tower.patch_embed(rows).shape == (2, tower.patch_embed.embed_dim), "patch_embed says another width"
    initialised = []
    tower._init_weights = initialised.append
    tower.outer = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    model.initialize_weights()
    assert initialised == [tower.outer[0], tower.outer], "the tower no longer initialises its modules, inside first"


@pytest.mark.every_family
@relies_on("MultimodalModel.get_image_features")
def test_get_image_features_is_what_forward_and_generate_encode_with(model, stock_inputs, heard):
    assert parameters(type(model.model).get_image_features)[1:3] == ["pixel_values", "image_grid_thw"]
    with torch.no_grad():
        output = model.model.get_image_features(
            stock_inputs["pixel_values"], stock_inputs["image_grid_thw"], return_dict=True
        )
    tokens = int(stock_inputs["image_grid_thw"].prod()) // 4
    assert [len(part) for part in output.pooler_output] == [tokens], "pooler_output is no longer one tensor per image"
    calls = heard(type(model.model), "get_image_features")
    with torch.no_grad():
        model(**stock_inputs)
        model.generate(**stock_inputs, max_new_tokens=2)
    assert len(calls) == 2, "forward and generate no longer encode the images once each, through get_image_features"


@pytest.mark.every_family
@relies_on("MultimodalModel.get_image_features", "ForConditionalGeneration.forward", "MultimodalModel.forward")
def test_generate_reads_the_signatures(model, stock_inputs):
    names = ("image_patch_layout", "image_patch_counts", "image_patch_parts")
    for name in names:
        with pytest.raises(ValueError, match=name):
            model.generate(**stock_inputs, **{name: torch.zeros(1, 3)}, max_new_tokens=2)
    for method in (type(model).forward, type(model.model).forward, type(model.model).get_image_features):
        kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD in kinds, f"{method.__qualname__} no longer hands on unknown arguments"
        own = set(names) & set(parameters(method))
        assert not own, f"{method.__qualname__} knows layouts of its own"


@pytest.mark.every_family
@relies_on("MultimodalModel.get_vision_position_ids")
def test_get_vision_position_ids_gives_the_positions_of_one_image(model):
    wanted = ["self", "start_position", "grid_thw", "temp_merge_size", "spatial_merge_size", "time_interval", "device"]
    found = parameters(type(model.model).get_vision_position_ids)
    assert found == wanted, "the parameters, or their order, are others"
    found = model.model.get_vision_position_ids(7, torch.tensor([1, 4, 6]), 1, 2, 1, device="cpu")
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    expected = torch.stack([torch.zeros(6), rows.flatten(), columns.flatten()]) + 7
    assert torch.equal(found, expected.long()), "positions are no longer (time, row, column) of 28-px cells + start"


@pytest.mark.every_family
@relies_on("MultimodalModel.get_rope_index")
def test_get_rope_index_walks_the_rows_of_the_grid(model, processor, prompt, half_plain, photos, heard):
    inputs = processor(images=[half_plain, photos[1]], text=prompt(2), return_tensors="pt")
    wanted = {"input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask"}
    assert wanted <= set(parameters(type(model.model).get_rope_index)), "the parameters are others"
    calls = heard(type(model.model), "get_vision_position_ids")
    rows = list(inputs["image_grid_thw"])  # a list, where the processor returns a tensor
    positions, deltas = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], rows)
    same = [call["grid_thw"] is row for call, row in zip(calls, rows, strict=True)]
    assert same == [True, True], "the rows no longer arrive as the objects that were given: the layouts would be lost"
    assert positions.shape == (3, *inputs["input_ids"].shape) and deltas.shape == (1, 1)
    assert int(deltas) == int(positions.max()) + 1 - inputs["input_ids"].shape[1], "the delta means something else"


@pytest.mark.every_family
@relies_on("MultimodalModel.forward")
def test_forward_takes_positions_as_given_and_keeps_the_deltas(model, stock_inputs):
    name = f"{type(model.model).__name__}.forward"
    found = set(parameters(type(model.model).forward))
    missing = {"input_ids", "position_ids", "mm_token_type_ids", "mm_encoder_outputs", "pixel_values"} - found
    assert not missing, f"{name} has no {missing}"
    assert found & set(CACHE_NAMES), f"{name} has none of {CACHE_NAMES}: the cache has another name"
    positions, deltas = model.model.get_rope_index(
        stock_inputs["input_ids"], stock_inputs["mm_token_type_ids"], stock_inputs["image_grid_thw"]
    )
    with torch.no_grad():
        own = model(**stock_inputs).logits
        assert torch.equal(model.model.rope_deltas, deltas), "forward no longer keeps the deltas in rope_deltas"
        assert torch.equal(model(**stock_inputs, position_ids=positions).logits, own), "given positions are not used"


@pytest.mark.every_family
@relies_on("ForConditionalGeneration.forward")
def test_forward_hands_unknown_arguments_to_the_model(model, stock_inputs, heard):
    calls = heard(type(model.model), "get_image_features")
    with torch.no_grad():
        model(**stock_inputs, image_mood="calm")
    assert calls[0]["image_mood"] == "calm", "an argument no longer travels from forward to get_image_features"


@pytest.mark.every_family
@relies_on("ForConditionalGeneration._validate_model_kwargs")
def test_generate_validates_its_arguments_in_one_place(model, stock_inputs, heard):
    calls = heard(type(model), "_validate_model_kwargs")
    with pytest.raises(ValueError, match="mood"):
        model.generate(**stock_inputs, mood="wild", max_new_tokens=2)
    assert "mood" in calls[0]["model_kwargs"]


@pytest.mark.every_family
@relies_on("ForConditionalGeneration._expand_inputs_for_generation")
def test_inputs_are_expanded_row_by_row(model, stock_inputs, heard):
    calls = heard(type(model), "_expand_inputs_for_generation")
    with torch.no_grad():
        model.generate(**stock_inputs, max_new_tokens=2, num_beams=2)
    assert calls[0]["expand_size"] == 2, "the size is no longer passed by name"
    given = {"image_grid_thw": torch.tensor([[1, 2, 4], [1, 4, 6]]), "image_patch_counts": torch.tensor([8, 24])}
    _, expanded = model._expand_inputs_for_generation(2, **given)
    assert expanded["image_grid_thw"].tolist() == [[1, 2, 4]] * 2 + [[1, 4, 6]] * 2, "grids are repeated otherwise"
    assert expanded["image_patch_counts"].tolist() == [8, 8, 24, 24], "counts are repeated otherwise"


@pytest.mark.every_family
@relies_on("ForConditionalGeneration._prepare_position_ids_for_generation")
def test_generate_prepares_positions_while_it_has_all_inputs(model, stock_inputs, heard):
    calls = heard(type(model), "_prepare_position_ids_for_generation")
    with torch.no_grad():
        model.generate(**stock_inputs, max_new_tokens=2)
    (call,) = calls
    assert list(call)[1:3] == ["inputs_tensor", "model_kwargs"]
    assert {"pixel_values", "image_grid_thw"} <= set(call["model_kwargs"]), (
        "the pixels are gone before positions are made"
    )


def role_of(overlay):
    """What an overlay of a family is: the name of the shared one that it derives from, or its own."""
    return next((base.__name__ for base in overlay.__mro__ if base.__name__ in ROLES), overlay.__name__)


ROLES = {"Processor", "VisionTower", "MultimodalModel", "ForConditionalGeneration"}
DATA = {"Processor.reads_patch_layouts", "Processor.patch_selection_default", "VisionTower.mixed_scale_forward"}
"""New members, which rely on nothing but that their names are free."""


def test_every_override_has_a_contract():
    overlays = patching._overlays()
    for family in finder.FAMILIES:
        overlays += patching._overlays(patching._modules_of(family))
    changed = {f"{role_of(overlay)}.{name}": overlay for overlay in overlays for _, name, _ in overlay.changes()}
    assert set(changed) - DATA == set(RELIED_ON), "a member is changed without a test of what is relied on, or not"
    for name in DATA:
        assert not hasattr(changed[name].resolve(), name.split(".")[1])
    tests = {name for names in RELIED_ON.values() for name in names}
    assert tests <= set(globals())
