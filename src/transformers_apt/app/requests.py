"""What a request to the page's API looks like; any other is told in a sentence what is wrong with it.

gradio takes the requests of its own page for granted: on others it fails with a traceback in the log, and an answer
that says nothing. Of its endpoints, those that this page does not need are not answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

DEEPEST = 32
"""Lists and objects within each other; the page's own requests have 4 levels."""

LONGEST_NAME = 200
"""Characters of a session's or an event's name; the page's own have 11 and 32."""

POSTED = ("upload", "queue/join", "call/NAME", "run/NAME", "cancel", "reset")
PREDICTIONS = ("call", "run", "api")

Kinds = dict[str, tuple[type | tuple[type, ...], str]]
FIELDS: Kinds = {
    "session_hash": (str, "text"),
    "event_id": (str, "text"),
    "oauth_token": (str, "text"),
    "fn_index": (int, "a whole number"),
    "trigger_id": (int, "a whole number"),
    "data": (list, "a list of the fields' values"),
    "simple_format": (bool, "true or false"),
    "batched": (bool, "true or false"),
}


class BadRequestError(ValueError):
    """A sentence for whoever sent the request, and the status to send it with."""

    def __init__(self, sentence: str, status: int = 422) -> None:
        super().__init__(sentence)
        self.status = status


class ReadableOnly:
    """ASGI middleware in front of gradio: reads a request's body, and hands it on if gradio can make sense of it.

    What bounds a body's size comes before it.

    Args:
        app: what comes next.
        page: gradio's `Blocks`, whose functions may be called.
    """

    def __init__(self, app: Any, page: Any) -> None:
        self.app = app
        self.page = page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI wants it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parts = scope["path"].strip("/").split("/")
        try:
            if scope["method"] == "POST" and parts != ["gradio_api", "upload"]:
                receive = await self._read(parts, dict(scope["headers"]), receive)
            elif len(parts) in (4, 5) and parts[:2] == ["gradio_api", "call"]:
                self._check_event(parts[-1])
        except BadRequestError as error:
            await _refuse(error)(scope, receive, send)
            return
        await self._hand_on(scope, receive, send)

    async def _hand_on(self, scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def noted(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except RuntimeError as error:
            # a stream about a session that is not there says so, and then fails
            if not (started and "response already started" in str(error)):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, parts: list[str], headers: dict[bytes, bytes], receive: Any) -> Callable[[], Any]:
        """A `receive` that says again what was read.

        Raises:
            BadRequestError: what was read is nothing that gradio could answer.
        """
        endpoint = parts[1:] if parts[0] == "gradio_api" else []
        if not _is_posted(endpoint):
            expected = ", ".join(f"/gradio_api/{name}" for name in POSTED)
            raise BadRequestError(f"This page takes nothing under that address; expected one of {expected}.", 404)
        messages: list[Any] = []
        try:
            while not messages or messages[-1].get("more_body", False):
                messages.append(await receive())
                if messages[-1]["type"] != "http.request":  # the sender has gone
                    return _again(messages, receive)
        except Exception as error:  # too long: the one who counts wants to hear of it from gradio
            return _failing(error)
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise BadRequestError("Expected JSON; send it with the header Content-Type: application/json.", 415)
        body = parse(b"".join(message.get("body", b"") for message in messages))
        self._check_call(endpoint, body)
        return _again(messages, receive)

    def _check_call(self, endpoint: list[str], body: dict[str, Any]) -> None:
        if endpoint[:2] == ["call", "v2"] and len(endpoint) == 3:
            self._check_named(endpoint[2], body)
            return
        check_fields(body)
        if endpoint in (["cancel"], ["reset"]):
            wanted = ("event_id",) if endpoint == ["reset"] else ("session_hash", "fn_index", "event_id")
            _demand(body, *wanted)
            return
        _demand(body, "data")
        if body.get("batched"):
            raise BadRequestError("batched=true: expected false; send one request for each photo.")
        if endpoint == ["queue", "join"]:
            _demand(body, "session_hash", "fn_index")
        place = None if endpoint[0] == "call" else body.get("fn_index")
        if place is None:
            self._check_name(endpoint[-1])
        elif place not in self.page.fns:
            raise BadRequestError(f"fn_index={place}: expected 0 to {max(self.page.fns)}.")

    def _check_name(self, name: str) -> None:
        names = sorted({str(fn.api_name) for fn in self.page.fns.values() if fn.api_visibility == "public"})
        if not any(fn.api_name == name for fn in self.page.fns.values()):
            raise BadRequestError(f"{shown(name)} cannot be called; expected one of {', '.join(names)}.", 404)

    def _check_named(self, name: str, body: dict[str, Any]) -> None:
        """A call whose values have names."""
        self._check_name(name)
        described = self.page.get_api_info()["named_endpoints"].get(f"/{name}", {"parameters": []})
        parameters = {entry["parameter_name"]: entry for entry in described["parameters"]}
        for key in body:
            if key not in parameters:
                raise BadRequestError(f"{shown(key)} is no field of {name}; expected {', '.join(parameters)}.")
        for key, entry in parameters.items():
            if key not in body and not entry["parameter_has_default"]:
                raise BadRequestError(f"{key} is missing; {name} has the fields {', '.join(parameters)}.")

    def _check_event(self, event: str) -> None:
        queue = self.page._queue
        waiting = (event in events for events in queue.pending_event_ids_session.values())
        if event not in queue.event_ids_to_events and not any(waiting):
            raise BadRequestError("There is no such event, or it was answered already; call again.", 404)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        BadRequestError: there is none, or one that cannot be answered in JSON.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is no JSON that can be read ({shown(str(error), 120)}).", 400) from error
    if not isinstance(value, dict):
        raise BadRequestError(f"The body is {shown(value)}: expected a JSON object.")
    inside: list[tuple[Any, int]] = [(value, 1)]
    while inside:
        part, depth = inside.pop()
        if depth > DEEPEST:
            raise BadRequestError(f"The body nests lists and objects more than {DEEPEST} deep.")
        if isinstance(part, dict):
            inside += [(entry, depth + 1) for pair in part.items() for entry in pair]
        elif isinstance(part, list):
            inside += [(entry, depth + 1) for entry in part]
        elif isinstance(part, str) and not _is_text(part):
            raise BadRequestError("The body holds half a character (a lone surrogate); expected Unicode text.")
    return value


def check_fields(body: dict[str, Any]) -> None:
    """Refuse fields of another type than gradio's page sends; `null` is a field that is not there.

    Raises:
        BadRequestError: with the field's name.
    """
    for name, (kind, words) in FIELDS.items():
        value = body.get(name)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise BadRequestError(f"{name}={shown(value)}: expected {words}.")
        if isinstance(value, str) and len(value) > LONGEST_NAME:
            raise BadRequestError(f"{name} has {len(value)} characters: expected at most {LONGEST_NAME}.")


def shown(value: Any, longest: int = 60) -> str:
    """A value in a sentence, cut short."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _demand(body: dict[str, Any], *names: str) -> None:
    for name in names:
        if body.get(name) is None:
            raise BadRequestError(f"{name} is missing: expected {FIELDS[name][1]}.")


def _is_posted(endpoint: list[str]) -> bool:
    if endpoint in (["queue", "join"], ["cancel"], ["reset"]):
        return True
    return (len(endpoint) == 2 and endpoint[0] in PREDICTIONS) or (
        len(endpoint) == 3 and endpoint[:2] == ["call", "v2"]
    )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _refuse(error: BadRequestError) -> Response:
    """gradio's front end reads `detail` or `error`, depending on what it asked for."""
    if error.status == 404:
        return PlainTextResponse(str(error), error.status)
    return JSONResponse({"detail": str(error), "error": str(error)}, error.status)


def _again(messages: list[Any], receive: Any) -> Callable[[], Any]:
    left = list(messages)

    async def again() -> Any:
        return left.pop(0) if left else await receive()

    return again


def _failing(error: Exception) -> Callable[[], Any]:
    async def fail() -> Any:
        raise error

    return fail
