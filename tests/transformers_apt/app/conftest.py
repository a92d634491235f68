"""What the web page's tests share: a model, a bench to work at, a served page with small limits, and a browser."""

import io
import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image
from skimage import data

from transformers_apt.app.handlers import Limits, Workbench
from transformers_apt.app.model import Answerer
from transformers_apt.embedded.asking import load_checkpoint

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIMITS = Limits(upload_bytes=3_000_000, pixels=2_000_000, question=80)


@pytest.fixture(scope="session")
def answerer(folder):
    model, processor = load_checkpoint(str(folder), "cpu", "float32")
    return Answerer(model, processor, max_new_tokens=6)


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def bench(answerer, uploads):
    return Workbench(answerer, LIMITS, (uploads,))


@pytest.fixture(scope="session")
def astronaut():
    return Image.fromarray(data.astronaut())


@pytest.fixture
def put(uploads):
    """Put an image or bytes where uploads lie; returns the path."""

    def put(content, name="photo.png", **options):
        path = uploads / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **options)
        return str(path)

    return put


@pytest.fixture(scope="session")
def encoded():
    """The bytes of a small PNG that no other size or seed has."""

    def encode(width, height, seed=0):
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        pixels[:, : width // 2] = 90
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return encode


class Served:
    """A served page and its address, with the calls a browser makes."""

    def __init__(self, page, address, folder):
        import httpx

        self.page, self.address, self.folder = page, address.rstrip("/"), folder
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def upload(self, name, content):
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def call(self, name, path, *values, **file):
        """`(kind of the last event, its data)` of an endpoint called with a photo at `path`."""
        photo = {"path": path, "meta": {"_type": "gradio.FileData"}, **file}
        started = self.client.post(f"/gradio_api/call/{name}", json={"data": [photo, *values]})
        event = started.json()["event_id"]
        lines = self.client.get(f"/gradio_api/call/{name}/{event}").text.strip().splitlines()
        return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


@pytest.fixture(scope="session")
def served(answerer, tmp_path_factory):
    pytest.importorskip("gradio", reason="the web page needs the extra 'app'")
    from transformers_apt.app.command import assemble, upload_folder
    from transformers_apt.app.server import serve

    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
            patch.setenv(name, "")  # to be put back as it was
        page = assemble(answerer, LIMITS, folder, "a <test> model")
        address = serve(page, upload_folder(folder), LIMITS.upload_bytes)
        yield Served(page, address, folder)
        page.close()


@pytest.fixture
def log(capsys):
    """`log()`: what the server has written since, on whatever way to its log."""
    from loguru import logger

    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler, names = Lines(), ("", "uvicorn", "uvicorn.error", "gradio")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    sink = logger.add(lines.append, level="WARNING")

    def take():
        printed = capsys.readouterr()
        found = "".join([*map(str, lines), printed.out, printed.err])
        lines.clear()
        return found

    yield take
    logger.remove(sink)
    for name in names:
        logging.getLogger(name).removeHandler(handler)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium found; `make browser` installs it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield browser
        browser.close()
