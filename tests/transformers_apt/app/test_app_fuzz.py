"""Every field of every endpoint takes only what is meant for it; all else is a sentence, and the log stays quiet."""

import asyncio
import html
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("gradio", reason="the web page needs the extra 'app'")

from transformers_apt.app.handlers import Setting, UserError
from transformers_apt.app.requests import BadRequestError, check_fields, parse, shown

CONTROLS = ["budget", "entropy", 0.3, 1.0, None, None, "off", "off", None]
FIELDS = {
    "photo": [{"path": None, "meta": {"_type": "gradio.FileData"}}, "2b", *CONTROLS, *CONTROLS],
    "setting_a": [{"path": None, "meta": {"_type": "gradio.FileData"}}, "2b", *CONTROLS],
    "ask": [{"path": None, "meta": {"_type": "gradio.FileData"}}, "What?", *CONTROLS, *CONTROLS],
}
NONE_OF_THEM = [
    *(None, True, 5, -1, 0.5, 1e308, 10**30, [], [[]], [None], {}, {"a": 1}),
    *("", "x" * 5000, "\0", "[red]", "2b", "é\u202e"),
]
FILES = [
    *({"path": 5}, {"path": "\0"}, {"path": "x" * 5000}, {"path": []}, {"path": "/etc/hostname"}, {"path": "/" * 300}),
    *(
        {"path": "x" * 300},
        {"path": None},
        {"path": "", "url": 5},
        {"path": "a", "meta": 5},
        {"path": "a", "meta": {}},
    ),
    *({"path": "a", "size": "b", "meta": {"_type": "gradio.FileData"}}, {"url": "http://127.0.0.1:1/a"}),
    *({"path": "a", "meta": {"_type": "else"}}, {"path": "é\u202e", "meta": {"_type": "gradio.FileData"}}),
]
POSTED = ["queue/join", "call/ask", "call/nothing", "run/ask", "run/nothing", "api/photo", "call/v2/ask", "cancel"]
POSTED += [
    "call/v2/nothing",
    "reset",
    "component_server",
    "process_recording",
    "vibe-edit",
    "stream/a",
    "login",
    "call",
]
BODIES = [
    *(None, 5, "text", [], {}, {"data": None}, {"data": {}}, {"data": []}, {"data": [], "session_hash": 5}),
    *({"data": [], "session_hash": "s", "fn_index": value} for value in (99, -1, "0", True, 0.5, [], 10**30)),
    {"data": [], "session_hash": "s", "fn_index": 0, "batched": True},
    {"data": [], "session_hash": "s", "fn_index": 0, "trigger_id": 99, "event_data": 5, "event_id": "e"},
    {"data": [], "session_hash": "s" * 5000, "fn_index": 0},
    {"session_hash": "s", "fn_index": 0, "event_id": []},
    {"path": None, "question": None, "whatever": 1},
    {"session_hash": "s", "component_id": 999, "fn_name": "x", "data": 1},
]
RAW = [b"", b"\xff{", b"{", b"[" * 100_000, b'{"data":' + b"[" * 200 + b"]" * 200 + b"}", b"1" * 5000, b"NaN"]
RAW += [b'{"data":["\\ud800"],"session_hash":"s","fn_index":0}', b'{"\\udfff":1,"data":[]}', b'{"data":[Infinity]}']


def answer(response):
    """The sentence in an answer, on whatever way it comes."""
    if response.headers["content-type"].startswith("application/json"):
        body = response.json()
        return str(body.get("detail") or body.get("error") or body) if isinstance(body, dict) else str(body)
    return response.text


@pytest.mark.parametrize("name", FIELDS)
def test_values_of_another_type(served, log, name):
    for place in range(len(FIELDS[name])):
        for value in [*NONE_OF_THEM, *(FILES if place == 0 else [])]:
            data = [value if place == i else kept for i, kept in enumerate(FIELDS[name])]
            response = served.client.post(f"/gradio_api/run/{name}", json={"data": data})
            case = f"{name}[{place}] = {value!r}"
            assert response.status_code in (200, 422, 500), case
            assert answer(response) not in ("", "None", "Internal Server Error"), case
            assert "Something went wrong here" not in html.unescape(response.text), case
            assert "Traceback" not in log(), case


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("change", [lambda data: [], lambda data: data[:-1], lambda data: [*data, 1]])
def test_too_few_and_too_many_values(served, log, name, change):
    kind, told = started(served, name, change(FIELDS[name]))
    assert kind == "error" and "values came: expected" in told["error"] and "Traceback" not in log()


def started(served, name, data):
    event = served.client.post(f"/gradio_api/call/{name}", json={"data": data}).json()["event_id"]
    lines = served.client.get(f"/gradio_api/call/{name}/{event}").text.strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


@pytest.mark.parametrize("question", [None, 5, [], {}, True])
def test_a_question_that_is_no_text(served, encoded, log, bench, put, question):
    (path,) = served.upload("photo.png", encoded(112, 112)).json()
    kind, told = served.call("ask", path, question, *CONTROLS, *CONTROLS)
    assert kind == "error" and f"{question} is no text: expected a question" in told["error"]
    assert "Traceback" not in log()
    with pytest.raises(UserError, match="expected text"):
        next(bench.ask(put(encoded(60, 60)), question, []))


@pytest.mark.parametrize("path", POSTED)
def test_bodies_that_are_no_request(served, log, path):
    for body in BODIES:
        response = served.client.post(f"/gradio_api/{path}", json=body)
        assert response.status_code < 500 or (response.status_code == 500 and "values came" in answer(response)), body
        assert answer(response) and "Traceback" not in log(), body
    for raw in RAW:
        for kind in ("application/json", "multipart/form-data", "text/plain", ""):
            headers = {"Content-Type": kind}
            response = served.client.post(f"/gradio_api/{path}", content=raw, headers=headers)
            assert 400 <= response.status_code < 500 and len(answer(response)) > 20, (raw[:20], kind)
            assert "Traceback" not in log(), (raw[:20], kind)


@pytest.mark.parametrize(
    "address",
    [
        *("gradio_api/queue/data", "gradio_api/queue/data?session_hash=nobody", "gradio_api/call/ask/nothing"),
        *(
            "gradio_api/call/v2/ask/nothing",
            "gradio_api/upload_progress",
            "gradio_api/file=%00",
            "gradio_api/deep_link",
        ),
        *("gradio_api/file=%ff", f"gradio_api/file={'x' * 5000}", "gradio_api/file=", "gradio_api/stream/a/b/c/x.ts"),
        *("gradio_api/stream/a/1/1/playlist.m3u8", "gradio_api/custom_component/a/b/c/d", "gradio_api/nothing"),
        *("static/%00", "assets/%00", "svelte/..%2f", "monitoring/x", "nothing", "?deep_link=%00", "?__theme=%ff"),
    ],
)
def test_addresses_that_lead_nowhere(served, log, address):
    response = served.client.get(f"/{address}")
    assert response.status_code < 500
    assert "Traceback" not in log()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "x" * 300 + ".png", "é" * 200 + ".png", "a\0b.png", "\ud800.png", "a\nb.png"]
)
def test_uploads_under_odd_names(served, encoded, log, name):
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
    body = head % name.encode("utf-8", "surrogatepass") + encoded(60, 60) + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = served.client.post("/gradio_api/upload", content=body, headers=headers)
    assert response.status_code in (200, 400, 422) and answer(response), response.status_code
    assert "Traceback" not in log()


def test_half_a_character_does_not_reach_the_session(served, log):
    """gradio kept it, and every later answer to that session failed."""
    body = b'{"data":[{"path":"\\ud800"}],"session_hash":"s","fn_index":0}'
    headers = {"Content-Type": "application/json"}
    response = served.client.post("/gradio_api/queue/join", content=body, headers=headers)
    assert response.status_code == 422 and "half a character" in response.text and "Traceback" not in log()


def test_hidden_controls_take_numbers_only(served, log):
    """The page's own events, which no name leads to."""
    places = [place for place, fn in served.page.fns.items() if fn.api_visibility == "private" and fn.inputs]
    assert len(places) >= 6
    for place in places:
        inputs = served.page.fns[place].inputs
        for value in NONE_OF_THEM:
            body = {"data": [value] * len(inputs), "fn_index": place, "session_hash": "hidden"}
            response = served.client.post("/gradio_api/run/predict", json=body)
            assert response.status_code in (200, 422, 500) and answer(response) not in ("", "None"), (place, value)
            assert "Traceback" not in log(), (place, value)
    place = next(i for i, fn in served.page.fns.items() if fn.name == "_visible_controls")
    for value in ("36", [36], {}, True):
        body = {"data": ["v1", "entropy", value, None], "fn_index": place}
        response = served.client.post("/gradio_api/run/predict", json=body)
        assert "thresholds holds numbers" in answer(response) and "Traceback" not in log()


def test_what_gradio_cannot_read_is_one_line_in_the_log(served, log, monkeypatch):
    from transformers_apt.app import fields as app_fields

    monkeypatch.setattr(app_fields, "problem", lambda block, value: "")
    response = served.client.post("/gradio_api/run/setting_a", json={"data": [5, *FIELDS["setting_a"][1:]]})
    assert "reload the page" in answer(response)
    assert "could not read what was sent" in (said := log()) and "Traceback" not in said


@pytest.mark.parametrize("path", [5, [1], "\0", {"a": 1}, b"\0", "\ud800"])
def test_paths_that_are_none(bench, path):
    with pytest.raises(UserError, match="not the path of a file"):
        bench.photo(path)


def test_paths_that_are_too_long(bench, uploads):
    with pytest.raises(UserError, match="no longer on the server"):
        bench.photo(str(uploads / ("x" * 300)))
    with pytest.raises(UserError, match="was not uploaded here"):
        bench.photo("x" * 5000)


@pytest.mark.parametrize("name", [None, 5, [], {}])
def test_names_of_settings_that_are_none(name):
    for setting in (Setting(name, "entropy", 0.5, 1.0), Setting("v1", name, 0.5, 1.0, (1, 2))):
        with pytest.raises(UserError, match="expected a name in plain text"):
            setting.kwargs()


# ---------------------------------------------------------------- reading a body

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@pytest.mark.generated
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_body_is_an_object_or_refused(body):
    try:
        value = parse(body)
    except BadRequestError as error:
        assert error.status in (400, 422) and str(error).isprintable() and len(str(error)) < 300
    else:
        assert json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.generated
@given(st.dictionaries(st.sampled_from(["session_hash", "fn_index", "data", "batched", "event_id"]), JSON))
def test_fields_are_of_their_type_or_refused(body):
    try:
        check_fields(body)
    except BadRequestError as error:
        assert "expected" in str(error) and len(str(error)) < 200
    else:
        assert isinstance(body.get("fn_index"), int | None) and not isinstance(body.get("fn_index"), bool)
        assert isinstance(body.get("data"), list | None) and isinstance(body.get("session_hash"), str | None)


def test_values_in_a_sentence_are_short_and_printable():
    assert [shown(value) for value in (None, "a b", "", "a\nb", "x" * 99)] == [
        *("None", "a b", "''", "'a\\nb'"),
        "x" * 59 + "…",
    ]


def test_a_sender_who_goes_is_left_to_gradio():
    from transformers_apt.app.requests import ReadableOnly

    seen = []

    async def app(scope, receive, send):
        seen.extend([await receive(), await receive()])

    coming = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return coming.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": []}
    asyncio.run(ReadableOnly(app, None)(scope, receive, None))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]


def test_other_failures_of_a_stream_are_not_hidden():
    from transformers_apt.app.requests import ReadableOnly

    async def app(scope, receive, send):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        asyncio.run(ReadableOnly(app, None)({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None))
