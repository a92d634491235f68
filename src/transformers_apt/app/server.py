"""The web page's server: this machine only, bounded in what it stores, and no way to other files or hosts."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

from transformers_apt.visualizer.files import JPEG

HOST = "127.0.0.1"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""The browser loads nothing from anywhere else, whatever gradio's front end asks for."""

DRAWINGS = "drawings"
"""The folder of the drawings within the one of the uploads, out of which alone gradio serves files."""

ENVELOPE = 2**18
"""Bytes of a request that is no upload, and of what an upload has around its file."""

KEPT = 3600
"""Seconds until an upload is deleted."""


class Drawings:
    """Pictures as files for the page to load; the oldest are deleted, for the browser has them by then.

    Args:
        folder: where they go; made if missing.
        most: how many are kept.
    """

    def __init__(self, folder: Path, most: int = 1000) -> None:
        self.folder = folder
        self.most = most
        self._files: deque[Path] = deque()
        self._lock = threading.Lock()

    def save(self, picture: Image.Image) -> str:
        """Write one, and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}.jpg"
        picture.save(path, **JPEG)
        with self._lock:
            self._files.append(path)
            while len(self._files) > self.most:
                self._files.popleft().unlink(missing_ok=True)
        return str(path)


class Guard:
    """ASGI middleware: refuses to fetch from other hosts, large requests, and uploads beyond what may be stored.

    gradio would pass other hosts' files on (`file=https://…`, `proxy=…`), which this page never needs. It bounds each
    file of an upload, but neither how many they are nor its form fields, and keeps what came of one that was cut off.

    Args:
        app: what comes next.
        folder: of the uploads.
        upload_bytes: of one upload.
        most: bytes of uploads that may lie there, those that are on their way included.
    """

    def __init__(self, app: Any, folder: Path, upload_bytes: int, most: int) -> None:
        self.app = app
        self.folder = folder
        self.upload_bytes = upload_bytes
        self.most = most
        self._coming = 0

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """As ASGI wants it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_policy(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        last = scope["path"].rsplit("/gradio_api/", 1)[-1].lstrip("/").lower()
        limit = self.upload_bytes + ENVELOPE if last == "upload" else ENVELOPE
        announced = int(dict(scope["headers"]).get(b"content-length", limit))
        expected = min(announced, limit) if last == "upload" else 0
        refusal = _too_large(limit) if announced > limit else self._refusal(last, expected)
        self._coming += expected
        try:
            await (refusal or self.app)(scope, _counted(receive, limit, cut_off=last == "upload"), send_with_policy)
        except MultiPartException:  # which reading an upload handles itself
            if started:
                raise
            await _too_large(limit)(scope, receive, send_with_policy)
        finally:
            self._coming -= expected

    def _refusal(self, last: str, expected: int) -> PlainTextResponse | None:
        """What to answer instead, if anything."""
        if last.startswith(("proxy=", "file=http:", "file=https:", "file/http:", "file/https:")):
            return PlainTextResponse("This page does not fetch from other hosts.", 403)
        if last == "upload":
            delete_abandoned(self.folder)
            # what has come of an upload under way is counted twice, so that `most` is never exceeded
            if stored_bytes(self.folder) + self._coming + expected > self.most:
                return PlainTextResponse("The server holds too many uploads; try again in an hour.", 413)
        return None


def _too_large(limit: int) -> PlainTextResponse:
    return PlainTextResponse(f"Request exceeded maximum allowed size of {limit} bytes.", 413)


def _counted(receive: Callable[[], Awaitable[Any]], limit: int, cut_off: bool) -> Callable[[], Awaitable[Any]]:
    """`receive` that ends a body which grows beyond `limit`, and if told so one that is cut off, by an exception.

    It is gradio's own, at which it deletes what it has written of the upload.
    """
    seen, whole = 0, False

    async def counted() -> Any:
        nonlocal seen, whole
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > limit:
                raise MultiPartException(f"Request exceeded maximum allowed size of {limit} bytes.")
        elif cut_off and not whole:
            raise MultiPartException("The upload was cut off.")
        return message

    return counted


def stored_bytes(folder: Path) -> int:
    """What the uploads of a folder take; the drawings, which are bounded otherwise, are not counted."""
    total = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != DRAWINGS]
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue  # deleted meanwhile
    return total


def delete_abandoned(folder: Path, age: float = KEPT) -> None:
    """Delete what came of uploads that never became one; gradio, which deletes the others, knows nothing of them.

    Args:
        folder: of the uploads; a finished one lies in a folder of its own.
        age: seconds since the last change, from which on a file is one.
    """
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False) and time.time() - entry.stat(follow_symlinks=False).st_mtime > age:
                os.unlink(entry)


def serve(page: Any, folder: Path, upload_bytes: int, port: int | None = None, *, browse: bool = False) -> str:
    """Start to serve the page, on this machine only, and return its address; `page.close()` ends it.

    Args:
        page: `app.build`'s.
        folder: of the uploads.
        upload_bytes: of one upload.
        port: `None` for the first free one from 7860.
        browse: open the page in a browser.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from transformers_apt.app.origin import OwnPageOnly
    from transformers_apt.app.requests import ReadableOnly
    from transformers_apt.app.text import CSS

    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    # waiting visitors are told so; beyond this many they are turned away
    page.queue(max_size=128, default_concurrency_limit=1)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400")
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=browse,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        max_file_size=upload_bytes,
        theme=theme,
        css=CSS,
        js=script,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        state_session_capacity=256,
        app_kwargs={
            "middleware": [
                Middleware(OwnPageOnly, names=(HOST, "localhost")),
                Middleware(Guard, folder=folder, upload_bytes=upload_bytes, most=100 * upload_bytes),
                Middleware(ReadableOnly, page=page),  # after what bounds the body that it reads
            ]
        },
    )
    return str(address)
