"""Many browsers at once, each with its own photo or its own bad file: nothing is mixed up, and the server stays small.

Five of them by default. `TRANSFORMERS_APT_BROWSERS=50` is the promise, and takes minutes on two cores.
"""

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
httpx = pytest.importorskip("httpx", reason="the web page needs the extra 'app'")
from transformers_apt.app.page import LEFT  # noqa: E402  # needs the same extra

expect = playwright.expect

SESSIONS = int(os.environ.get("TRANSFORMERS_APT_BROWSERS", "5"))
ROUNDS = 2
WAIT = 30_000 + 8_000 * SESSIONS
MOST_WAITING = 128
LIMITS = ("--max-upload-mb", "1", "--max-megapixels", "1")
A = ["budget", "entropy", 0.3, 1.0, None, None, "off", "off", None]
PIXEL = """([found, x, y]) => {
    const image = document.querySelector(found), canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth, canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data].slice(0, 3);
}"""
"""The colour that a picture of the page has at a place, in fractions of its sides."""


IN_EACH_PAGE = """window.toasts = "";
new MutationObserver(() => document.querySelectorAll(".toast-body").forEach(toast => {
    if (!window.toasts.includes(toast.innerText)) window.toasts += toast.innerText;
})).observe(document, {childList: true, subtree: true, characterData: true});
window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 250);
window.cancelAnimationFrame = clearTimeout;"""
"""Keeps what the messages said that go away by themselves after ten seconds, and draws gradio's timers four times a
second: at 60 times, fifty pages that do nothing keep three cores busy."""


class Good:
    """A photo like no other's: its size, and the colour of its plain half."""

    def __init__(self, number):
        self.name = f"photo{number}.png"
        self.size = 112 + 28 * (number % 10), 112 + 28 * (number // 10)
        self.colour = [40 + 40 * (number // 5**place % 5) for place in range(3)]
        width, height = self.size
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2] = self.colour
        self.content = as_file(Image.fromarray(pixels), "PNG")

    def check(self, page, kept):
        width, height = self.size
        full = width * height // 14**2
        expect(page.locator("#notice")).to_contain_text(f"{self.name}, {width} × {height} px", timeout=WAIT)
        for panel, shown in (("a", kept(self)), ("b", full)):
            facts = f"Vision patches{shown:,} of {full:,}"  # the text alone has nothing between two cells
            expect(page.locator(f"#{panel}-facts")).to_contain_text(facts, timeout=WAIT)
            loaded = f"#{panel}-tiling img"
            # far down the page, and a browser loads it only when it comes near
            page.locator(loaded).scroll_into_view_if_needed(timeout=WAIT)
            page.wait_for_function("found => document.querySelector(found).naturalWidth > 0", arg=loaded, timeout=WAIT)
            # in the middle of a 14-px patch, where no border is drawn
            colour = page.evaluate(PIXEL, [loaded, 21 / width, 21 / height])
            assert np.allclose(colour, self.colour, atol=8), (self.name, colour, self.colour)


class Bad:
    """A file that is no photo, and what the page says about it, for good or in a message that goes away."""

    def __init__(self, name, content, said, passing=False):
        self.name, self.content, self.said, self.passing = name, content, said, passing

    def check(self, page, kept):
        if self.passing:
            page.wait_for_function("said => window.toasts.includes(said)", arg=self.said, timeout=WAIT)
        else:
            expect(page.locator("#notice [role=alert]")).to_contain_text(self.said, timeout=WAIT)
        for panel in "ab":
            expect(page.locator(f"#{panel}-facts")).not_to_contain_text("Vision patches", timeout=WAIT)


def as_file(picture, kind):
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def text(number):
    return Bad(f"text{number}.jpg", b"no image %d" % number, f"text{number}.jpg cannot be read as an image")


def cut(number):
    whole = as_file(Image.fromarray(np.full((200, 200, 3), number, dtype=np.uint8)), "JPEG")
    return Bad(f"cut{number}.jpg", whole[: len(whole) // 2], f"cut{number}.jpg cannot be read as an image")


def heavy(number):
    return Bad(f"heavy{number}.png", b"%d" % number + b"0" * 2**20, "maximum allowed size", passing=True)


def vast(number):
    content = as_file(Image.new("L", (1200, 1000 + number)), "PNG")
    return Bad(f"vast{number}.png", content, f"vast{number}.png is 1200×{1000 + number} px: expected at most")


KINDS = (Good, text, heavy, cut, vast, Good, Good, Good, Good, Good)


class Watched(threading.Thread):
    """How many events wait at the server, at most, until stopped."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.most, self.ended = address, 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.1):
            self.most = max(self.most, self.now())

    def stop(self):
        self.ended.set()
        self.join(30)

    def now(self):
        return httpx.get(f"{self.address}/gradio_api/queue/status", timeout=60).json()["queue_size"]


@pytest.fixture
def watch():
    """`watch(address)` starts to watch, until the test ends or earlier."""
    started = []

    def watch(address):
        started.append(Watched(address))
        started[-1].start()
        return started[-1]

    yield watch
    for watched in started:
        watched.stop()


@pytest.fixture
def command(folder, tmp_path):
    """The page as `transformers-apt app` serves it, in a process of its own: its address and its log."""
    pytest.importorskip("gradio", reason="the web page needs the extra 'app'")
    start = [sys.executable, "-c", "from transformers_apt.cli.main import main; main()", "app", "--model", str(folder)]
    # memory that was freed goes back at once, so that what is measured is what is held
    memory = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    log = tmp_path / "log.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*start, "--device", "cpu", *LIMITS],
            env=os.environ | memory | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield process, process.stdout.readline().split("/ ")[0], log
        finally:
            process.terminate()
            process.wait(30)
    assert list(tmp_path.glob("transformers-apt-app-*")) == []


def report(measured):
    """For who runs the test with `-s`."""
    print(measured, flush=True)


def resident(process):
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_many_browsers_at_once(browser, command, watch, bench, put):
    process, address, log = command

    def kept(good):
        return bench.look(put(good.content, good.name), LEFT).view.layout.num_patches

    pages, errors, elsewhere = [], [], []
    start = time.monotonic()
    for _ in range(SESSIONS):
        page = browser.new_context(viewport={"width": 800, "height": 600}).new_page()
        page.set_default_timeout(WAIT)
        page.add_init_script(IN_EACH_PAGE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(address)
        expect(page.locator("#b-facts")).to_contain_text("Vision patches", timeout=WAIT)
        pages.append(page)
    report(f"{SESSIONS} open after {time.monotonic() - start:.0f} s, {resident(process):.0f} MiB")
    watched = watch(address)
    memory = [resident(process)]
    for turn in range(ROUNDS):
        files = [KINDS[(number + 5 * turn) % len(KINDS)](turn * SESSIONS + number) for number in range(SESSIONS)]
        start = time.monotonic()
        for page in pages:
            if page.get_by_label("Remove Image").count():
                page.get_by_label("Remove Image").click()
        for page, file in zip(pages, files, strict=True):
            upload = {"name": file.name, "mimeType": "image/png", "buffer": file.content}
            page.locator("#photo input[type=file]").set_input_files(upload)
        for page, file in zip(pages, files, strict=True):
            file.check(page, kept)
            content = page.content() + page.evaluate("window.toasts")
            assert "Traceback" not in content and "site-packages" not in content
            assert str(log.parent) not in page.locator("body").inner_text()  # pictures' addresses have to hold it
            assert not any(other.name in content for other in files if other is not file), "another's file"
        memory.append(resident(process))
        report(f"round {turn + 1}: {time.monotonic() - start:.0f} s, {memory[-1]:.0f} MiB")
    watched.stop()
    report(f"at most {watched.most} waited")
    for page in pages:
        page.context.close()
    assert errors == []
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []
    assert watched.most <= MOST_WAITING and watched.now() == 0
    assert max(np.diff(memory)) < 10 + 0.4 * SESSIONS, f"{memory} MiB"
    assert "Traceback" not in log.read_text()


def test_a_full_queue_turns_a_visitor_away_in_words_and_takes_them_later(browser, served, answerer, encoded):
    (path,) = served.upload("waiting.png", encoded(56, 56)).json()
    call = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "2b", *A]}
    page = browser.new_context().new_page()
    page.goto(served.address)
    expect(page.locator("#b-facts")).to_contain_text("Vision patches", timeout=WAIT)
    page.get_by_label("Remove Image").click()
    # or this would wait in the queue too, and what comes next wait for it
    expect(page.locator("#notice")).to_contain_text("Drop a photo", timeout=WAIT)
    mine = Good(7)
    upload = {"name": mine.name, "mimeType": "image/png", "buffer": mine.content}
    with answerer.preprocessing:  # the first caller waits for it, and all others for the first
        waiting = 0
        while served.client.post("/gradio_api/call/setting_a", json=call).status_code == 200:
            waiting += 1
        assert waiting in (MOST_WAITING, MOST_WAITING + 1)  # with the one that was taken up
        page.locator("#photo input[type=file]").set_input_files(upload)
        expect(page.locator(".toast-body")).to_contain_text("busy. Please try again", timeout=WAIT)
        assert "Vision patches" not in page.locator("#a-facts").inner_text()
    while served.client.get("/gradio_api/queue/status").json()["queue_size"]:
        time.sleep(0.1)
    page.get_by_label("Remove Image").click()
    page.locator("#photo input[type=file]").set_input_files(upload)
    expect(page.locator("#notice")).to_contain_text(mine.name, timeout=WAIT)
    expect(page.locator("#a-facts")).to_contain_text("Vision patches", timeout=WAIT)
    page.context.close()
