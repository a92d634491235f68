"""Merely installed, the package changes nothing in programs that asked for nothing: not a bit, in any of them.

`make test` runs what needs no package beside this one's own; `make test-bystanders` runs all.
"""

import json

import pytest

from tests.bystanders.matrix import PROGRAMS, RELATIVES, SERVERS, Case, run
from transformers_apt.models.settings import RECOMMENDED

BUDGET = json.dumps({"patch_selection_method": "budget", "alpha": 0.3})
SETTINGS = "TRANSFORMERS_APT_SETTINGS"
LAYOUT = "image_patch_layout"

HANDS_ON = (  # all that the processor returned, so that the model reads the layout
    Case("trl_cases", "supervised", "trl"),
    Case("embeddings", "encode", "sentence-transformers"),
    Case("evaluation", "qwen_vl_utils_on_qwen2_vl", "qwen-vl-utils"),
)
COUNTS_FROM_THE_GRID = (
    *SERVERS,
    Case("trl_cases", "grpo", "trl"),
    Case("trl_cases", "rloo", "trl"),
    Case("llama_factory", "train_step", "llamafactory"),
    Case("ms_swift", "train_step", "ms-swift"),
)


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def count_layouts(outcome):
    return json.dumps(outcome["seen"]).count(LAYOUT)


def on_and_off(case):
    installed, without = run((case, {}), (case, {"TRANSFORMERS_APT": "0"}))
    assert "error" not in without, without["printed"]
    assert "error" not in installed, installed["printed"]
    assert installed["active"] and not without["active"], installed["printed"]
    return installed, without


def assert_names_the_bad_value(outcome):
    assert f"{SETTINGS}='budget'" in outcome.get("error", ""), outcome["printed"]


def assert_refused(outcome):
    """The error says whose it is and how to go on."""
    error = outcome.get("error", "")
    assert "transformers-apt" in error and "'off'" in error, outcome["printed"]


@over((*SERVERS, *RELATIVES, *PROGRAMS))
def test_the_same_bits_as_without_the_package(case):
    installed, without = on_and_off(case)
    assert installed["seen"] == without["seen"]
    assert not count_layouts(installed)


def test_plain_transformers_code_is_what_the_default_reaches():
    """Else the test above would prove nothing: the photos are some that the default changes."""
    installed, without = on_and_off(Case("subclasses", "plain"))
    assert count_layouts(installed) and not count_layouts(without)
    assert installed["seen"]["logits"] != without["seen"]["logits"]
    assert "Adaptive patches are on" in installed["printed"]


@over(HANDS_ON)
def test_settings_in_the_environment_reach_programs_that_hand_everything_on(case):
    asked, bad = run((case, {SETTINGS: BUDGET}), (case, {SETTINGS: "budget"}))
    assert "error" not in asked, asked["printed"]
    parts = asked["seen"] if case.name == "supervised" else {case.name: asked["seen"]}
    for name, seen in parts.items():
        assert LAYOUT in json.dumps(seen), f"{name} went on without the adaptive patches that were asked for"
    assert_names_the_bad_value(bad)


def test_lmms_eval_scores_a_local_task_under_settings_of_the_environment():
    """The embedded model answers the embedded questions right, at full resolution and as recommended."""
    case = Case("evaluation", "lmms_eval", "lmms-eval")
    settings = (json.dumps({"patch_selection_method": "off"}), json.dumps(RECOMMENDED), "budget")
    off, recommended, bad = run(*((case, {SETTINGS: one}) for one in settings))
    for outcome in (off, recommended):
        assert "error" not in outcome, outcome["printed"]
        assert outcome["seen"]["exact match"] == 1 and len(outcome["seen"]["answers"]) == 6, outcome["seen"]
    assert not count_layouts(off) and count_layouts(recommended) == len(recommended["seen"]["seen"])
    assert_names_the_bad_value(bad)


@over(COUNTS_FROM_THE_GRID)
def test_settings_in_the_environment_are_refused_where_rows_are_counted_from_the_grid(case):
    asked, bad = run((case, {SETTINGS: BUDGET}), (case, {SETTINGS: "budget"}))
    assert_refused(asked)
    assert_names_the_bad_value(bad)


def test_settings_in_a_call_are_refused_there_too():
    (asked,) = run((Case("servers", "vllm_explicit"), {}))
    assert_refused(asked)


def test_settings_of_an_image_processor_are_done_or_refused():
    refused = [Case("trl_cases", name, "trl") for name in ("grpo_budget", "rloo_budget")]
    refused += [Case("llama_factory", "budget", "llamafactory"), Case("ms_swift", "budget", "ms-swift")]
    sft, *others = run(*((case, {}) for case in (Case("trl_cases", "sft_budget", "trl"), *refused)))
    assert "error" not in sft, sft["printed"]
    assert count_layouts(sft)
    for outcome in others:
        assert_refused(outcome)


def test_trl_learns_from_mixed_patches_what_the_model_makes_of_them_by_hand():
    (outcome,) = run((Case("trl_adaptive", "supervised", "trl"), {}))
    assert "error" not in outcome, outcome["printed"]
    for name, found in outcome["seen"].items():
        assert found["trainer"] == pytest.approx(found["by hand"], rel=1e-5), name
    for name in ("sft", "chosen", "rejected"):
        assert (
            outcome["seen"][f"{name} with branch"]["trainer"] != outcome["seen"][f"{name} without branch"]["trainer"]
        )


def test_a_loss_that_cuts_rows_by_the_grid_does_not_train_on_the_wrong_ones():
    """The layout is not cut with them, and the model refuses the two."""
    (asked,) = run((Case("embeddings", "cached_loss", "sentence-transformers"), {SETTINGS: BUDGET}))
    assert LAYOUT in asked.get("error", ""), asked["printed"]
