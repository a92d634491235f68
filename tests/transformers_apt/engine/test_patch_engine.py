"""Switching on and off: all or nothing, the same objects back, and a clear word when transformers is another."""

import importlib
import importlib.metadata
import inspect

import pytest
import transformers.models.qwen2_vl.image_processing_pil_qwen2_vl as pil_module
import transformers.models.qwen2_vl.image_processing_qwen2_vl as image_module
import transformers.models.qwen2_vl.modeling_qwen2_vl as modeling_module
import transformers.models.qwen2_vl.processing_qwen2_vl as processing_module
from transformers.generation.utils import GenerationMixin
from transformers.processing_utils import ProcessorMixin

import transformers_apt
from transformers_apt.engine import finder, overlay, patching
from transformers_apt.engine.overlay import Overlay, overrides

OTHERS = [
    importlib.import_module(f"transformers.models.{family}.{module}")
    for family, modules in finder.FAMILIES.items()
    if family != "qwen2_vl"
    for module in modules
]
CLASSES = [
    value
    for module in (pil_module, image_module, modeling_module, processing_module, *OTHERS)
    for value in vars(module).values()
    if isinstance(value, type) and value.__module__ == module.__name__
] + [ProcessorMixin, GenerationMixin]


def snapshot():
    return {cls: dict(vars(cls)) for cls in CLASSES}


def same(before, after):
    """Every member of every class is the very same object."""
    return all(
        before[cls].keys() == after[cls].keys() and all(before[cls][name] is after[cls][name] for name in before[cls])
        for cls in CLASSES
    )


@pytest.fixture
def off():
    """Upstream inside the test, the patch again after it."""
    transformers_apt.revert()
    yield
    patching._patch.failure = None
    transformers_apt.revert()
    transformers_apt.apply()


def test_revert_restores_the_same_objects(off):
    before = snapshot()
    transformers_apt.apply()
    assert not same(before, snapshot())
    transformers_apt.revert()
    assert same(before, snapshot())


def test_apply_and_revert_are_idempotent(off):
    before = snapshot()
    transformers_apt.apply()
    patched = snapshot()
    transformers_apt.apply()
    assert same(patched, snapshot())
    transformers_apt.revert()
    transformers_apt.revert()
    assert same(before, snapshot())


def test_applied_nests(off):
    before = snapshot()
    with transformers_apt.applied():
        patched = snapshot()
        with transformers_apt.applied():
            assert same(patched, snapshot())
        assert same(patched, snapshot()), "the inner block switched off what the outer one had switched on"
    assert same(before, snapshot())
    with pytest.raises(KeyError), transformers_apt.applied():
        raise KeyError
    assert same(before, snapshot())


def test_applied_leaves_a_patch_that_was_on(patched):
    before = snapshot()
    with transformers_apt.applied():
        pass
    assert transformers_apt.status().active and same(before, snapshot())


def test_status(off):
    status = transformers_apt.status()
    assert (status.active, status.reason, status.targets) == (False, None, ())
    assert status.families == dict.fromkeys(finder.FAMILIES, "the patch is off")
    assert status.supported == ">=5.18,<6.0"
    assert status.transformers_version == importlib.metadata.version("transformers")
    assert status.package_version == transformers_apt.__version__
    transformers_apt.apply()
    status = transformers_apt.status()
    assert status.active and status.reason is None
    assert status.families == dict.fromkeys(finder.FAMILIES)
    for target in (
        "Qwen2VLImageProcessor._preprocess",
        "Qwen2VLImageProcessorPil._preprocess",
        "Qwen2VLProcessor.replace_image_token",
        "Qwen2VLModel.get_rope_index",
        "ProcessorMixin._process_images",
    ):
        assert target in status.targets


def test_every_change_is_named(off):
    """`status().targets` is the whole truth about what differs from upstream."""
    before = snapshot()
    transformers_apt.apply()
    changed = {
        f"{cls.__name__}.{name}"
        for cls, members in snapshot().items()
        for name, value in members.items()
        if before[cls].get(name, overlay.MISSING) is not value
    }
    assert changed == set(transformers_apt.status().targets)


def test_signatures_name_the_layout(off):
    places = [
        (modeling_module.Qwen2VLModel, "forward"),
        (modeling_module.Qwen2VLModel, "get_image_features"),
        (modeling_module.Qwen2VLModel, "get_rope_index"),
        (modeling_module.Qwen2VLForConditionalGeneration, "forward"),
    ]
    upstream = [inspect.signature(getattr(cls, name)) for cls, name in places]
    documents = [getattr(cls, name).__doc__ for cls, name in places]
    transformers_apt.apply()
    for (cls, name), before, document in zip(places, upstream, documents, strict=True):
        method = getattr(cls, name)
        found = inspect.signature(method)
        names = {"image_patch_layout", "image_patch_counts"}
        if name != "get_rope_index":  # which has no need of pixels
            names.add("image_patch_parts")
        for added in (found.parameters[name] for name in names):
            assert added.kind is added.KEYWORD_ONLY and added.default is None
        others = [parameter for parameter in found.parameters.values() if parameter.name not in names]
        assert others == list(before.parameters.values())
        assert (method.__name__, method.__doc__) == (name, document)


def test_classes_stay_themselves(off):
    names = ("Qwen2VLImageProcessor", "Qwen2VLProcessor", "Qwen2VLForConditionalGeneration")
    import transformers

    before = {name: getattr(transformers, name) for name in names}
    transformers_apt.apply()
    assert {name: getattr(transformers, name) for name in names} == before


def refuses(*words):
    """`apply()` raises, names these words and changes nothing."""
    before = snapshot()
    with pytest.raises(transformers_apt.IncompatibleTransformersError) as refusal:
        transformers_apt.apply()
    for word in words:
        assert word in str(refusal.value)
    assert same(before, snapshot())
    assert not transformers_apt.status().active


def test_a_method_without_an_expected_parameter(off, monkeypatch):
    monkeypatch.setattr(modeling_module.Qwen2VLModel, "get_rope_index", lambda self, ids, **kwargs: None)
    refuses("Qwen2VLModel.get_rope_index has no parameter 'input_ids'", "['self', 'ids', 'kwargs']")


def test_a_method_that_has_the_new_parameter_already(off, monkeypatch):
    def forward(self, hidden_states, grid_thw, patch_layout=None, **kwargs):
        return None

    monkeypatch.setattr(modeling_module.Qwen2VisionTransformerPretrainedModel, "forward", forward)
    refuses("Qwen2VisionTransformerPretrainedModel.forward already has a parameter 'patch_layout'")


def test_a_missing_method(off, monkeypatch):
    monkeypatch.delattr(processing_module.Qwen2VLProcessor, "replace_image_token")
    monkeypatch.delattr(ProcessorMixin, "replace_image_token", raising=False)
    refuses("Qwen2VLProcessor.replace_image_token does not exist")


def test_a_missing_class(off, monkeypatch):
    monkeypatch.delattr(modeling_module, "Qwen2VLForConditionalGeneration")
    refuses("modeling_qwen2_vl.Qwen2VLForConditionalGeneration cannot be found")


def test_a_missing_helper(off, monkeypatch):
    monkeypatch.setattr(patching, "OVERLAY_MODULES", (*patching.OVERLAY_MODULES, "transformers_apt.not_there"))
    refuses("transformers_apt.not_there cannot be imported here")


def test_the_last_overlay_fails(off, monkeypatch):
    """All or nothing: everything is checked before the first change."""
    monkeypatch.setattr(modeling_module.Qwen2VLForConditionalGeneration, "forward", None)
    before = snapshot()
    with pytest.raises(TypeError):
        transformers_apt.apply()
    assert same(before, snapshot()) and not transformers_apt.status().active


@pytest.mark.parametrize("family", [family for family in finder.FAMILIES if family != "qwen2_vl"])
def test_a_family_that_differs_is_off_by_itself(family, off, monkeypatch):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    (name,) = [name for name in vars(module) if name.endswith("ForConditionalGeneration")]
    untouched = dict(vars(getattr(module, name)))
    monkeypatch.setattr(getattr(module, name), "_validate_model_kwargs", lambda self, other: None)
    transformers_apt.apply()
    status = transformers_apt.status()
    assert status.active and f"{name}._validate_model_kwargs has no parameter" in status.families.pop(family)
    assert set(status.families.values()) == {None}
    assert vars(getattr(module, name))["forward"] is untouched["forward"]


@pytest.mark.parametrize("version", ["5.17.3", "4.57.0", "6.0.0", "6.0.0.dev0", "7.1"])
def test_an_unsupported_release(version, off, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    refuses(f"transformers {version} is installed", ">=5.18,<6.0")


@pytest.mark.parametrize("version", ["5.18.0", "5.18.0.dev0", "5.99.1", "5.23.0+local"])
def test_a_supported_release(version, off, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    transformers_apt.apply()
    assert transformers_apt.status().transformers_version == version


def test_no_transformers(off, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert transformers_apt.status().transformers_version is None
    refuses("transformers is not installed")


def test_the_reason_of_a_failure_is_kept_until_it_works(off, monkeypatch):
    patching.record_failure(ValueError("the reason"))
    assert transformers_apt.status().reason == "ValueError: the reason"
    transformers_apt.apply()
    assert transformers_apt.status().reason is None


def test_an_overlay_of_a_property(off, monkeypatch):
    class Upstream:
        @property
        def names(self):
            """Documented."""
            return ["a"]

    class Changed(Overlay):
        target = "transformers.models.qwen2_vl.processing_qwen2_vl:Upstream"

        @overrides()
        def names(upstream, self):
            return [*upstream(self), "b"]

    monkeypatch.setattr(processing_module, "Upstream", Upstream, raising=False)
    ((target, name, value),) = Changed.changes()
    assert (target, name) == (Upstream, "names") and value.fget.__doc__ == "Documented."
    monkeypatch.setattr(Upstream, name, value)
    assert Upstream().names == ["a", "b"]


def test_an_inherited_member_is_inherited_again(off, monkeypatch):
    class Parent:
        def act(self):
            return "parent"

    class Child(Parent):
        pass

    class Changed(Overlay):
        target = "transformers.models.qwen2_vl.processing_qwen2_vl:Child"

        @overrides()
        def act(upstream, self):
            return f"changed {upstream(self)}"

    monkeypatch.setattr(processing_module, "Child", Child, raising=False)
    monkeypatch.setattr(patching, "_overlays", lambda: [Changed])
    transformers_apt.apply()
    assert (Child().act(), Parent().act()) == ("changed parent", "parent")
    transformers_apt.revert()
    assert "act" not in vars(Child) and Child().act() == "parent"


def test_a_module_that_is_not_there():
    class Lost(Overlay):
        target = "transformers.models.not_a_model:Thing"

    with pytest.raises(overlay.IncompatibleTransformersError, match=r"transformers\.models\.not_a_model\.Thing"):
        Lost.changes()
