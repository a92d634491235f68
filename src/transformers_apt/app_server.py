"""The web page's server: this machine only, bounded in what it stores, and no way to other files or hosts."""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.responses import PlainTextResponse

from transformers_apt.visualize_files import JPEG

HOST = "127.0.0.1"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""The browser loads nothing from anywhere else, whatever gradio's front end asks for."""


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
    """ASGI middleware: refuses to fetch from other hosts, and uploads where too much is stored already.

    gradio would pass other hosts' files on (`file=https://…`, `proxy=…`), which this page never needs.

    Args:
        app: what comes next.
        folder: of the uploads.
        most: bytes that may lie there.
    """

    def __init__(self, app: Any, folder: Path, most: int) -> None:
        self.app = app
        self.folder = folder
        self.most = most

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        """As ASGI wants it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"])

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await (refusal or self.app)(scope, receive, send_with_policy)

    def _refusal(self, path: str) -> PlainTextResponse | None:
        """What to answer instead, if anything."""
        last = path.rsplit("/gradio_api/", 1)[-1].lstrip("/").lower()
        if last.startswith(("proxy=", "file=http:", "file=https:", "file/http:", "file/https:")):
            return PlainTextResponse("This page does not fetch from other hosts.", 403)
        if last == "upload" and stored_bytes(self.folder) > self.most:
            return PlainTextResponse("The server holds too many uploads; try again in an hour.", 413)
        return None


def stored_bytes(folder: Path) -> int:
    """What the files of a folder's folders take."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue  # deleted meanwhile
    return total


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
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from transformers_apt.app_text import CSS

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
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        state_session_capacity=256,
        app_kwargs={
            "middleware": [
                # another site's name that was made to point here (DNS rebinding) is refused
                Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
                Middleware(Guard, folder=folder, most=100 * upload_bytes),
            ]
        },
    )
    return str(address)
