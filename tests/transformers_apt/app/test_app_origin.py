"""The page answers its own scripts and programs on this machine, and no other web page."""

import socket

import pytest

pytest.importorskip("starlette", reason="the web page needs the extra 'app'")

from transformers_apt.app.origin import OwnPageOnly

UPLOAD = ("POST", "/gradio_api/upload")
JOIN = ("POST", "/gradio_api/queue/join")
COSTLY = [
    UPLOAD,
    JOIN,
    ("POST", "/gradio_api/run/ask"),
    ("POST", "/gradio_api/call/ask"),
    ("POST", "/gradio_api/cancel"),
    ("GET", "/gradio_api/queue/data"),
    ("GET", "/gradio_api/deep_link"),
    ("GET", "/GRADIO_API/info"),
    ("PUT", "/"),
    ("OPTIONS", "/gradio_api/upload"),
]
HOME = "127.0.0.1:7860"


def refused(method, path, kind="http", **headers):
    """Whether a request with these headers is; names as in Python, `None` leaves one out."""
    given = {"host": HOME, **headers}
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in given.items() if value is not None]
    scope = {"type": kind, "method": method, "path": path, "headers": raw}
    return OwnPageOnly(None, ("127.0.0.1", "localhost")).refusal(scope) is not None


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "http://evil.example:7860", "null", "", "http://127.0.0.1:3000", "http://127.0.0.1"),
        *("http://localhost:7860", "http://127.0.0.1:7860.evil.example", "http://127.0.0.1:7860@evil.example"),
        *("http://evil.example/127.0.0.1:7860", "file://", "chrome-extension://abc", "http://[", "127.0.0.1:7860"),
        *("http://127.0.0.1:7860/", "ftp://127.0.0.1:7860"),
    ],
)
@pytest.mark.parametrize(("method", "path"), COSTLY)
def test_another_pages_requests_are_refused(method, path, origin):
    assert refused(method, path, origin=origin)


@pytest.mark.parametrize(("method", "path"), COSTLY)
def test_the_page_itself_and_programs_are_not(method, path):
    assert not refused(method, path)  # curl
    assert not refused(method, path, origin=f"http://{HOME}")
    assert not refused(method, path, origin="http://localhost:9000", host="localhost:9000")  # a forwarded port
    assert not refused(method, path, origin="HTTP://LocalHost", host="LOCALHOST")
    assert not refused(method, path, origin="http://localhost:80", host="localhost")
    assert not refused(method, path, origin="https://localhost", host="localhost:443")
    assert not refused(method, path, sec_fetch_site="same-origin", origin=f"http://{HOME}")
    assert not refused(method, path, sec_fetch_site="none")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "", "whatever"])
def test_what_the_browser_says_of_the_sender_counts(site):
    """Also where it sends no `Origin`, as for an image of a page; same-site is another port of this machine."""
    for method, path in COSTLY:
        assert refused(method, path, sec_fetch_site=site)
    assert not refused("GET", "/", sec_fetch_site=site)


def test_a_link_from_another_page_opens_this_one():
    for method in ("GET", "HEAD"):
        assert not refused(method, "/", sec_fetch_site="cross-site")
        assert not refused(method, "/assets/index.js", origin="https://evil.example")


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7860", "127.0.0.1.evil.example:7860", "localhost.evil.example", "localhost."),
        *(
            "",
            "0.0.0.0:7860",
            "127.0.0.2:7860",
            "127.0.0.1:evil",
            "127.0.0.1:7860:1",
            "[::1]:7860",
            "127.1:7860",
            None,
        ),
    ],
)
def test_another_name_that_points_here_is_refused(host):
    """Even for what the page's own scripts would ask, for they would be another site's (DNS rebinding)."""
    for kind in ("http", "websocket"):
        assert refused("GET", "/", kind, host=host)
        assert refused(*UPLOAD, kind, host=host, origin=f"http://{host}", sec_fetch_site="same-origin")


def test_two_hosts_are_one_too_many():
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"localhost"), (b"host", b"localhost")],
    }
    assert OwnPageOnly(None, ("localhost",)).refusal(scope)


# ---------------------------------------------------------------- the served page


def stored(served):
    return sorted(path for path in (served.folder / "uploads").rglob("*") if "drawings" not in path.parts)


def test_a_foreign_upload_is_refused_and_stores_nothing(served, encoded, log):
    before = stored(served)
    photo = {"files": ("photo.png", encoded(60, 61))}
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        response = served.client.post("/gradio_api/upload", files=photo, headers=headers)
        assert response.status_code == 403 and response.text.startswith("Another site's page asked for this")
    assert stored(served) == before and "Traceback" not in log()
    own = served.client.post("/gradio_api/upload", files=photo, headers={"Origin": served.address})
    assert own.status_code == 200 and served.upload("photo.png", encoded(60, 61)).status_code == 200


def test_a_foreign_page_can_neither_ask_nor_listen(served):
    foreign = {"Origin": "https://evil.example"}
    body = {"data": [], "session_hash": "s", "fn_index": 0, "event_id": "e"}
    for name in ("queue/join", "call/ask", "run/ask", "cancel", "reset"):
        assert served.client.post(f"/gradio_api/{name}", json=body, headers=foreign).status_code == 403, name
    for name in ("queue/data?session_hash=s", "info", "deep_link", "heartbeat/s", "file=x"):
        assert served.client.get(f"/gradio_api/{name}", headers=foreign).status_code == 403, name
    asks = {**foreign, "Access-Control-Request-Method": "POST"}
    allowed = served.client.options("/gradio_api/upload", headers=asks).headers
    assert "access-control-allow-origin" not in allowed


def test_a_foreign_name_gets_nothing_at_all(served):
    for path in ("/", "/config", "/gradio_api/info", "/assets/x"):
        response = served.client.get(path, headers={"Host": "evil.example"})
        assert response.status_code == 403 and "not served under that name; use http://127.0.0.1" in response.text
    with socket.create_connection(served.address.removeprefix("http://").split(":")) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"403")
    port = served.address.rsplit(":", 1)[1]
    assert served.client.get("/", headers={"Host": f"localhost:{port}"}).status_code == 200
