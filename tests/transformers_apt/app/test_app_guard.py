"""What comes into the server is bounded before it is read: by request, by upload, and in all."""

import asyncio
import os
import socket
import time

import pytest

pytest.importorskip("starlette", reason="the web page needs the extra 'app'")

from transformers_apt.app import server as app_server
from transformers_apt.app.server import ENVELOPE, KEPT, Guard

UPLOAD = "/gradio_api/upload"
JOIN = "/gradio_api/queue/join"


async def reader(scope, receive, send):
    """An app that reads the whole body, as all of gradio's do that take one."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"through"})


async def ask(guard, path, parts=(b"",), announced=None):
    """Status and body that the guard, or the app behind it, sends."""
    sent, coming = [], list(parts)

    async def receive():
        part = coming.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(coming)}

    async def send(message):
        sent.append(message)

    headers = [] if announced is None else [(b"content-length", str(announced).encode())]
    await guard({"type": "http", "path": path, "method": "POST", "headers": headers}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def asked(*arguments, **options):
    return asyncio.run(ask(*arguments, **options))


def test_uploads_are_bounded_in_all(tmp_path):
    guard = Guard(reader, tmp_path, upload_bytes=100, most=100)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_bytes(b"x" * 90)
    assert app_server.stored_bytes(tmp_path) == 90
    assert asked(guard, UPLOAD, announced=10) == (200, b"through")
    status, body = asked(guard, UPLOAD, announced=11)
    assert status == 413 and b"too many uploads" in body
    assert asked(guard, UPLOAD)[0] == 413  # of unknown length, so as long as it may be
    assert asked(guard, JOIN) == (200, b"through")


def test_uploads_at_once_cannot_exceed_together_what_each_alone_would_not(tmp_path):
    """Each is checked before another has been written; what they announced counts, until they end, however they do."""
    gate = asyncio.Event()

    async def slow(scope, receive, send):
        await gate.wait()
        if scope["headers"][0][1] == b"31":
            raise ConnectionError("gone")
        await reader(scope, receive, send)

    async def rush():
        guard = Guard(slow, tmp_path, upload_bytes=100, most=100)
        tasks = [asyncio.create_task(ask(guard, UPLOAD, announced=n)) for n in (30, 31, 30, 30)]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return results, await ask(guard, UPLOAD, announced=100)

    results, afterwards = asyncio.run(rush())
    assert [result[0] for result in (results[0], *results[2:])] == [200, 200, 413]
    assert isinstance(results[1], ConnectionError) and afterwards[0] == 200


def test_drawings_take_no_room_from_the_uploads(tmp_path):
    (tmp_path / app_server.DRAWINGS).mkdir()
    (tmp_path / app_server.DRAWINGS / "1.jpg").write_bytes(b"x" * 500)
    assert app_server.stored_bytes(tmp_path) == 0


@pytest.mark.parametrize(("path", "limit"), [(UPLOAD, 100 + ENVELOPE), (JOIN, ENVELOPE)])
def test_a_request_is_refused_by_what_it_announces_and_by_what_comes(tmp_path, path, limit):
    guard = Guard(reader, tmp_path, upload_bytes=100, most=10**9)
    assert asked(guard, path, [b"x" * limit], announced=limit) == (200, b"through")
    for parts, announced in (([b""], limit + 1), ([b"x" * limit, b"x"], None)):
        status, body = asked(guard, path, parts, announced=announced)
        assert status == 413 and body == f"Request exceeded maximum allowed size of {limit} bytes.".encode()


def test_what_was_abandoned_is_deleted_after_an_hour_and_nothing_else(tmp_path):
    (tmp_path / "upload").mkdir()
    old, new, finished = tmp_path / "tmpold", tmp_path / "tmpnew", tmp_path / "upload" / "photo.png"
    for path in (old, new, finished):
        path.write_bytes(b"x")
    for path in (old, finished):  # gradio deletes what is finished
        os.utime(path, (time.time() - KEPT - 1,) * 2)
    assert asked(Guard(reader, tmp_path, upload_bytes=100, most=1000), UPLOAD, announced=10)[0] == 200
    assert not old.exists() and new.exists() and finished.exists()


def loose_files(served):
    """Where gradio writes what comes, until it is whole."""
    return [path for path in (served.folder / "uploads").iterdir() if path.is_file()]


def test_an_upload_that_is_cut_off_leaves_nothing(served):
    before = loose_files(served)
    host, port = served.address.removeprefix("http://").split(":")
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="cut.png"\r\n\r\n' + b"x" * 200_000
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + part)
        wait_until(lambda: len(loose_files(served)) > len(before))
    wait_until(lambda: loose_files(served) == before)


def wait_until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_form_field_and_many_files_are_bounded_as_one_file_is(served):
    before = loose_files(served)

    def chunked(fields, each):  # without a length, so that it is read
        for name in fields:
            yield f"--b\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
            yield from (b"x" * 2**16 for _ in range(each // 2**16))
            yield b"\r\n"
        yield b"--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for fields, each in (
        (['name="a"'], 3_500_000),
        ([f'name="files"; filename="{n}.png"' for n in range(5)], 800_000),
    ):
        response = served.client.post(UPLOAD, content=chunked(fields, each), headers=headers)
        assert response.status_code == 413 and "maximum allowed size" in response.text
    response = served.client.post(JOIN, content=(b" " * 2**16 for _ in range(6)))
    assert response.status_code == 400 and "error parsing the body" in response.text  # FastAPI's words
    assert loose_files(served) == before
