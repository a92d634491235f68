"""The work behind `transformers-apt app` and `debug/web_demo.py`."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers_apt
from transformers_apt.app.handlers import Limits, Setting, Workbench
from transformers_apt.app.model import Answerer
from transformers_apt.embedded.asking import describe_model, load_checkpoint
from transformers_apt.visualizer.command import EXPECTED as EXPECTED  # what bad input raises
from transformers_apt.visualizer.view import pick_device


def run(
    model: str | None,
    device: str,
    dtype: str,
    port: int | None,
    limits: Limits,
    max_new_tokens: int,
    browse: bool,
    say: Callable[[str], None],
) -> None:
    """Load the model and serve the page until interrupted.

    Raises:
        ModuleNotFoundError: no gradio or matplotlib. ValueError, OSError: options or a model that cannot be used.
    """
    for name in ("gradio", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"the web page needs {name}, which is not installed; expected the extra 'app': "
                "pip install 'transformers-apt[app]'"
            )
    transformers_apt.apply()
    where = pick_device(device)
    checkpoint, processor = load_checkpoint(model, where, dtype)
    answerer = Answerer(checkpoint, processor, max_new_tokens)
    with _terminating_like_an_interrupt(), tempfile.TemporaryDirectory(prefix="transformers-apt-app-") as folder:
        page = assemble(answerer, limits, Path(folder), describe_model(model, checkpoint, where))
        from transformers_apt.app.server import serve

        address = serve(page, upload_folder(Path(folder)), limits.upload_bytes, port, browse=browse)
        say(f"{address}  (this machine only; Ctrl+C ends it)")
        page.block_thread()


def assemble(answerer: Answerer, limits: Limits, folder: Path, model: str) -> Any:
    """The page, with its files in `folder`, ready to be served.

    Args:
        answerer: the model.
        limits: what a visitor may ask for.
        folder: an empty folder of its own.
        model: who answers, in words.
    """
    uploads = upload_folder(folder)
    uploads.mkdir(parents=True)
    # gradio has no other way to be told; it reads them when a page is made
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from transformers_apt.app import page as app
    from transformers_apt.app.examples import collect
    from transformers_apt.app.server import DRAWINGS, Drawings

    examples = collect(folder.resolve() / "examples")
    bench = Workbench(answerer, limits, (uploads,))
    page = app.build(bench, examples, Drawings(uploads / DRAWINGS), model)
    warm_up(bench, uploads)
    return page


@contextmanager
def _terminating_like_an_interrupt() -> Iterator[None]:
    """So that a stopped service, too, deletes what was uploaded."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def upload_folder(folder: Path) -> Path:
    """Where uploads and drawings go."""
    return folder.resolve() / "uploads"


def warm_up(bench: Workbench, uploads: Path) -> None:
    """Compile the importance maps before the first visitor waits."""
    from PIL import Image

    from apt_code.entropy_utils import IMPORTANCE_METHODS

    path = uploads / "warm_up.png"
    Image.new("RGB", (8 * bench.patch_size, 8 * bench.patch_size)).save(path)
    for importance in IMPORTANCE_METHODS:
        bench.look(str(path), Setting("budget", importance, share=0.5, multiple=1.0))
    path.unlink()
