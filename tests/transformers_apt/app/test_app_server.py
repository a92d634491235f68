"""The served page, spoken to as a program would that means no good: limits, files, hosts, and many at once."""

import html
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from transformers_apt.app.server import Drawings

A = ["budget", "entropy", 0.3, 1.0, None, None, "off", "off", None]
B = ["off", "entropy", 0.3, 1.0, None, None, "off", "off", None]


def test_it_listens_on_this_machine_only_and_shares_nothing(served):
    assert served.page.server_name == "127.0.0.1" and served.address.startswith("http://127.0.0.1:")
    assert served.page.share_url is None and not served.page.analytics_enabled
    page = served.client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert not re.search(r'<(?:link|script)[^>]+(?:href|src)="https?://', page.text)
    for path in ("/monitoring", "/gradio_api/runs"):
        assert served.client.get(path).status_code in (403, 404)


def test_an_upload_that_is_too_large_is_refused_while_it_comes(served):
    response = served.upload("large.png", b"0" * 3_000_001)
    assert response.status_code == 413 and "maximum allowed size" in response.text


def test_an_upload_stays_in_its_folder_whatever_it_is_called(served, encoded):
    for name in ("../../evil.png", "/etc/evil.png", "..\\evil.png"):
        (path,) = served.upload(name, encoded(60, 60)).json()
        assert Path(path).resolve().is_relative_to(served.folder.resolve() / "uploads")


@pytest.mark.parametrize("path", ["/etc/hostname", "../../../etc/hostname", "secret.png", "link.png"])
def test_no_other_file_can_be_looked_at_or_fetched(served, encoded, path):
    secret = served.folder / "secret.png"
    secret.write_bytes(encoded(50, 50))
    if path == "secret.png":
        path = str(secret)
    elif path == "link.png":
        path = str(served.folder / "uploads" / "link.png")
        if not Path(path).is_symlink():
            Path(path).symlink_to(secret)
    for name, values in (("photo", ["2b", *A, *B]), ("setting_a", ["2b", *A]), ("ask", ["What?", *A, *B])):
        kind, told = served.call(name, path, *values)
        assert kind == "error" or "was not uploaded here" in str(told)
        assert "Traceback" not in str(told) and "50 × 50" not in str(told)
    response = served.client.get(f"/gradio_api/file={path}")
    assert response.status_code in (403, 404) and encoded(50, 50) != response.content


def test_no_other_host_is_asked(served):
    for path in ("/gradio_api/proxy=https://a.hf.space/", "/gradio_api/file=http://localhost/", "/file/https://a.org"):
        response = served.client.get(path)
        assert response.status_code == 403 and "does not fetch" in response.text
    kind, told = served.call("photo", "http://127.0.0.1:1/photo.png", "2b", *A, *B)
    assert kind == "error" and "upload the image" in told["error"]


@pytest.mark.parametrize(
    ("controls", "named"),
    [
        (["budget", "entropy", 1.5, 1.0, None, None, "off", "off", None], "1.5 is greater than maximum"),
        (["v2", "entropy", 0.5, -1.0, None, None, "off", "off", None], "-1.0 is less than minimum"),
        (["best", "entropy", 0.5, 1.0, None, None, "off", "off", None], "best is not in the list of choices"),
        (["v1", "entropy", 0.5, 1.0, None, None, "3", "off", None], "3 is not in the list of choices"),
        (["v1", "entropy", 0.5, 1.0, None, None, "2", "3", None], "3 is not in the list of choices"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_the_server(served, encoded, controls, named):
    (path,) = served.upload("photo.png", encoded(112, 112)).json()
    kind, told = served.call("setting_a", path, "2b", *controls)
    assert kind == "error" and named in told["error"].replace("'", "")


@pytest.mark.parametrize(
    ("thresholds", "named"),
    [
        (["36", 36], "thresholds holds numbers, got '36'"),
        ([[36], 36], "thresholds holds numbers, got [36]"),
        ([True, None], "thresholds holds numbers, got True"),
        ([None, 10**400], "an integer that no float can hold"),
    ],
)
def test_thresholds_that_are_none_are_one_sentence(served, encoded, thresholds, named):
    (path,) = served.upload("photo.png", encoded(112, 112)).json()
    kind, told = served.call("setting_a", path, "2b", "v1", "upsample_mse", 0.5, 1.0, *thresholds, "off", "off", None)
    assert kind == "complete" and named in html.unescape(told[0]) and told[1:4] == ["", None, None]


def test_thresholds_are_v1s_and_an_empty_one_is_the_maps_own(served, encoded):
    (path,) = served.upload("photo.png", encoded(168, 168)).json()
    captions = {}
    for thresholds in ((36, 36), (36, None), (None, None)):
        _, told = served.call("setting_a", path, "2b", "v1", "upsample_mse", 0.5, 1.0, *thresholds, "off", "off", None)
        captions[thresholds] = [entry["caption"] for entry in told[4]][1:]
    assert captions[36, 36] == ["28 px: whole below 36", "56 px: whole below 36"]
    assert captions[36, None] == ["28 px: whole below 36", "56 px: whole below 16"]
    assert captions[None, None] == ["28 px: whole below 16", "56 px: whole below 16"]


def test_inline_data_cannot_take_the_files_place(served, encoded):
    (path,) = served.upload("text.png", b"no image").json()
    kind, told = served.call("photo", path, "2b", *A, *B, url="data:image/png;base64,AAAA")
    assert kind == "complete" and "text.png cannot be read as an image" in told[0]


def test_a_question_is_answered_or_refused_in_one_sentence(served, encoded):
    (path,) = served.upload("photo.png", encoded(112, 112)).json()
    kind, told = served.call("ask", path, " ", *A, *B)
    assert kind == "complete" and "Type a question first." in told[0]
    kind, told = served.call("ask", path, "What is <|image_pad|>?", *A, *B)
    assert kind == "complete" and "a special token of the model" in told[0] and told[1:] == ["", "", "", ""]
    kind, told = served.call("ask", path, "What is this?", *A, *B)
    assert kind == "complete" and "First token after" in told[2] and "First token after" in told[4]


def test_what_was_not_foreseen_goes_to_the_log_and_not_to_the_visitor(bench, put, encoded, tmp_path, monkeypatch):
    app = pytest.importorskip("transformers_apt.app.page")
    logged = []
    sink = app.logger.add(logged.append, level="ERROR")

    def fail(*_):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(bench, "look", fail)
    work = app._Work(bench, Drawings(tmp_path / "drawn"))
    shown = work.show_one(put(encoded(60, 60)), "2b", *A)
    app.logger.remove(sink)
    assert "Something went wrong here" in shown[0] and "secret" not in str(shown)
    assert "a secret of the server" in "".join(logged)


def test_many_sessions_at_once_each_get_their_own(served, encoded):
    """Good and bad uploads mixed; every answer is about the visitor's own file, and nobody sees a traceback."""

    def visit(number):
        if number % 3 == 2:
            (path,) = served.upload(f"bad{number}.jpg", f"no image {number}".encode()).json()
            kind, told = served.call("photo", path, "2b", *A, *B)
            return kind, re.search(r"bad\d+\.jpg cannot be read as an image", told[0])[
                0
            ] if kind == "complete" else told
        width, height = 112 + 28 * number, 112
        (path,) = served.upload(f"photo{number}.png", encoded(width, height, number)).json()
        kind, told = served.call("photo", path, "2b", *A, *B)
        full = width * height // 196
        counted = [re.search(r"([\d,]+) of ([\d,]+)<", facts) for facts in (told[1], told[6])]
        return kind, told[0].count(f"photo{number}.png"), [found[2] == f"{full:,}" for found in counted], counted[1][1]

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(visit, range(12)))
    for number, result in enumerate(results):
        if number % 3 == 2:
            assert result == ("complete", f"bad{number}.jpg cannot be read as an image")
        else:
            assert result == ("complete", 1, [True, True], f"{(112 + 28 * number) * 112 // 196:,}")


def test_drawings_are_bounded(tmp_path):
    drawings = Drawings(tmp_path / "drawn", most=3)
    paths = [Path(drawings.save(Image.new("RGB", (8, 8)))) for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
