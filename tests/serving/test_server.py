"""A server among whose requests are settings that cannot be used and broken images: each gets its own answer."""

import pytest

from tests.serving.server import body, embedded, run
from transformers_apt.embedded import examples

BUDGET = '{"images_kwargs": {"patch_selection_method": "budget", "alpha": 0.3}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


def test_each_request_gets_its_own_answer_or_a_400(folder):
    with embedded(log=folder / "mixed.log") as server:
        found = run(server, count=80, concurrency=16)
    assert found["wrong"] == []
    assert found["alive"]
    assert set(found["statuses"]) == {200, 400}


def test_settings_of_the_server_hold_where_a_request_has_none(folder):
    example = examples()[0]
    with embedded("--mm-processor-kwargs", BUDGET, log=folder / "budget.log") as server:
        used = [
            server.post(body(example.question, example.image.read_bytes(), settings))[1]["usage"]["prompt_tokens"]
            for settings in (
                None,
                {"patch_selection_method": "budget", "alpha": 0.3},
                {"patch_selection_method": "off"},
            )
        ]
    assert used[0] == used[1] < used[2]
