"""What a server cannot do with adaptive patches is said in a sentence, and works without them."""

import re
import shlex
from pathlib import Path

import pytest
import vllm
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.serving.conftest import save_tiny
from tests.serving.engines import IMAGE, OFF, Request, ask, engine, processed
from transformers_apt import training
from transformers_apt.serving import contracts
from transformers_apt.serving.plugin import ARCHITECTURES

ROOT = Path(__file__).parents[2]
V1 = {"patch_selection_method": "v1"}
TEXT = f"What is in {IMAGE}?"


def model_of(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


@pytest.mark.parametrize(
    ("family", "option", "sentence"),
    [
        ("qwen2_vl", {"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data"),
        ("qwen2_5_vl", {"video_pruning_rate": 0.3}, "video pruning"),
    ],
    ids=["data", "pruning"],
)
def test_what_places_images_by_their_grids_is_refused(tiny, pictures, family, option, sentence):
    with engine(tiny(family), **option) as llm:
        with pytest.raises(ValueError, match=sentence):
            ask(llm, [Request(TEXT, pictures[:1], settings=V1)], family)
        if sentence != "video pruning":  # with which this vLLM fails at a prompt of images alone, without us too
            asked, unasked = ask(llm, [Request(TEXT, pictures[:1], settings=given) for given in (OFF, {})], family)
            assert asked.tokens == unasked.tokens
    with pytest.raises(ValueError, match=sentence):  # noqa: SIM117  # the server itself does not start
        with engine(tiny(family), mm_processor_kwargs=V1, **option):
            pass


def test_images_are_kept_from_cuda_graphs_and_lora_counts_their_rows(tiny, pictures):
    with engine(tiny("qwen2_vl")) as llm:
        model = model_of(llm)
        assert model.get_encoder_cudagraph_config().modalities == ["video"]
        for settings in ({}, V1):
            (prompt,) = processed(llm, [Request(TEXT, pictures[2:3], settings=settings)])
            (item,), (place,) = prompt["mm_kwargs"]["image"], prompt["mm_placeholders"]["image"]
            counts = model.get_mm_lora_token_counts(modality="image", mm_kwargs=item, num_mm_embeds=place.length)
            assert counts == (len(item["pixel_values"].data), place.length)
        assert len(item["pixel_values"].data) < 4 * place.length  # what vLLM would have taken it for


def test_a_branch_is_served_beside_a_checkpoint_only(pictures, tmp_path):
    """Where it does not take part: vLLM reads the checkpoint's own files. One inside is refused."""
    folder = save_tiny(tmp_path, "qwen2_vl")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    training.add_branch(model, processor)
    training.save(model, folder / training.FOLDER)
    processor.save_pretrained(folder)
    with engine(folder) as llm:
        (answer,) = ask(llm, [Request(TEXT, pictures[:1], settings=V1)])
        assert answer.tokens
        with pytest.raises(ValueError, match="patch_parts=True on a vLLM server"):
            ask(llm, [Request(TEXT, pictures[:1], settings={**V1, "patch_parts": True})])
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="a branch for coarse patches, which vLLM cannot compute"):  # noqa: SIM117
        with engine(folder):
            pass


# ---------------------------------------------------------------- contracts


def test_the_installed_vllm_is_as_expected():
    assert contracts.problems(set(ARCHITECTURES.values())) == {}
    assert set(contracts.RELIES_ON) == {contracts.EVERY_FAMILY, *ARCHITECTURES.values()}


@pytest.fixture
def copied(tmp_path):
    """The sources that are relied on, to be changed."""
    installed = Path(vllm.__file__).parent
    for entries in contracts.RELIES_ON.values():
        for file in {entry.split(" ")[0] for entry in entries}:
            copy = tmp_path / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text((installed / file).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def change(copied, file, old, new):
    path = copied / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_family_that_changed_is_left_out_alone(copied):
    change(copied, "model_executor/models/qwen2_5_vl.py", "fullatt_block_indexes", "full_blocks")
    found = contracts.problems(set(ARCHITECTURES.values()), "0.33.1", copied)
    assert set(found) == {"qwen2_5_vl"}
    assert "Qwen2_5_VisionTransformer.fullatt_block_indexes" in found["qwen2_5_vl"]


def test_another_parameter_of_what_all_rely_on_stops_all(copied):
    change(copied, "multimodal/processing/processor.py", "mm_options", "options")
    (found,) = (contracts.problems({"qwen2_vl"}, "0.32.0", copied)[contracts.EVERY_FAMILY],)
    assert "get_dummy_inputs(seq_len, mm_counts, mm_options)" in found


@pytest.mark.parametrize("version", ["0.31.4", "0.34.0", "1.32.0", "dev"])
def test_releases_that_are_not_known(version, copied):
    assert "0.32 and 0.33 are supported" in contracts.problems({"qwen2_vl"}, version, copied)[contracts.EVERY_FAMILY]


# ---------------------------------------------------------------- documentation


def test_commands_of_the_documentation_know_their_options():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    lines = [line for page in pages for line in re.findall(r"^ *vllm serve (.*)$", page.read_text("utf-8"), re.M)]
    assert lines
    for line in lines:
        parser.parse_args(["--model", *shlex.split(line)])
