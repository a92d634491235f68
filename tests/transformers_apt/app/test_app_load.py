"""Fifty visitors at once, good and bad: each gets their own, nobody sees a traceback, and the server stays small."""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SESSIONS = 50
A = ["budget", "upsample_mse", 0.3, 1.0, None, None, "off", "off", None]
B = ["off", "entropy", 0.3, 1.0, None, None, "off", "off", None]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_fifty_sessions_at_once(served, encoded):
    def good(number):
        width, height = 112 + 28 * (number % 20), 112 + 28 * (number // 20)
        (path,) = served.upload(f"photo{number}.png", encoded(width, height, number)).json()
        kind, told = served.call("photo", path, "2b", *A, *B)
        full = f"{width * height // 196:,}"
        counted = re.search(r"([\d,]+) of ([\d,]+)<", told[1])
        own = told[0].count(f"photo{number}.png") == 1 and counted[2] == full
        return kind == "complete" and own and int(counted[1].replace(",", "")) < int(full.replace(",", "")), told

    def no_image(number):
        (path,) = served.upload(f"bad{number}.jpg", os.urandom(2000)).json()
        kind, told = served.call("photo", path, "2b", *A, *B)
        return kind == "complete" and f"bad{number}.jpg cannot be read as an image" in told[0], told

    def too_large(number):
        response = served.upload(f"large{number}.png", b"0" * 3_000_001)
        return response.status_code == 413, response.text

    def not_theirs(number):
        kind, told = served.call("photo", "/etc/hostname", "2b", *A, *B)
        return kind == "error" or "was not uploaded here" in str(told), told

    def out_of_range(number):
        (path,) = served.upload(f"range{number}.png", encoded(112, 112, number)).json()
        beyond = ["budget", "entropy", 1.0 + number, *A[3:]]
        kind, told = served.call("photo", path, "2b", *beyond, *B)
        return kind == "error" and "greater than maximum" in str(told), told

    visits = (good, no_image, good, not_theirs, good, too_large, good, out_of_range, good, good)
    served.client.get("/")
    visits[0](0)  # what is loaded at the first use is no leak
    before = resident()
    with ThreadPoolExecutor(SESSIONS) as pool:
        results = list(pool.map(lambda number: visits[number % len(visits)](number), range(SESSIONS)))
    for number, (right, told) in enumerate(results):
        assert right, (number, visits[number % len(visits)].__name__, told)
        assert "Traceback" not in str(told) and "site-packages" not in str(told)
    assert resident() - before < 300, "MiB"
    uploads = served.folder.resolve() / "uploads"
    outside = [path for path in served.folder.resolve().rglob("large*") if not path.is_relative_to(uploads)]
    assert not outside and not list(uploads.rglob("large*")), "a refused upload was kept"
