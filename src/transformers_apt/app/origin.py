"""Who may speak to the page: its own scripts and programs on this machine, and no other web page.

A browser sends a request to this machine for any page that asks for it, and says for whom. Two headers tell:
`Sec-Fetch-Site`, which newer browsers add and no page can set, and `Origin`. Programs such as curl send neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

API = "/gradio_api"
DEFAULT_PORTS = {"http": "80", "https": "443"}
FOREIGN = "Another site's page asked for this, and this page answers only itself; open its own address and try again."


class OwnPageOnly:
    """ASGI middleware: 403 for another name that was made to point here, and for what another site's page asks for.

    What another page may do is what a link does: open this one. All else changes something, costs work, or tells
    something.

    Args:
        app: what comes next.
        names: the host names that are ours.
    """

    def __init__(self, app: Any, names: Sequence[str]) -> None:
        self.app = app
        self.names = tuple(names)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI wants it."""
        refusal = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse(refusal, 403)(scope, receive, send)

    def refusal(self, scope: Any) -> str | None:
        """A sentence for a request that is not answered, `None` for one that is."""
        hosts = _values(scope, b"host")
        # more than one: which of them the parts behind this one would read is anybody's guess
        if len(hosts) != 1 or _name(hosts[0]) not in self.names:
            return f"This page is not served under that name; use http://{self.names[0]} with its port."
        if not _is_foreign(scope, hosts[0]):
            return None
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        return None if reads and not scope["path"].lower().startswith(API) else FOREIGN


def _is_foreign(scope: Any, host: str) -> bool:
    """Whether another origin's page sent this. Another port of this machine is another origin."""
    sites = _values(scope, b"sec-fetch-site")
    if sites:
        return any(site not in ("same-origin", "none") for site in sites)  # none: typed by a person, or a bookmark
    return any(not _same(origin, host) for origin in _values(scope, b"origin"))


def _same(origin: str, host: str) -> bool:
    """Whether an origin is where the request went; the port may be left out where it is the scheme's own.

    The host is compared and not our own port, for a forwarded port (`ssh -L`) may be another one.
    """
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    port = DEFAULT_PORTS.get(parts.scheme)
    if port is None or parts.path or parts.query or parts.fragment:  # `null` has no scheme
        return False
    return parts.netloc.removesuffix(f":{port}") == host.removesuffix(f":{port}")


def _values(scope: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in scope["headers"] if key.lower() == name]


def _name(host: str) -> str:
    """`127.0.0.1:7860` without its port; what is none stays, and is nobody's name."""
    name, colon, port = host.partition(":")
    return host if colon and not (port.isascii() and port.isdigit()) else name
