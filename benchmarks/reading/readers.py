"""Two pretrained readers of single lines, and what they read before, kept on disk.

Neither has seen these pictures, and nobody here wrote or trained either. Both are given lines that are cut out where
they are known to stand, so that what is measured is reading, not finding.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reading.sheet import Box

HEIGHT = 48
"""Lines are brought to this height, which is PP-OCR's; smaller ones are scaled up bicubically."""
MARGIN = 0.15
"""Of the height of a line, left around it."""

INSTALL = {
    "PP-OCR": "rapidocr-onnxruntime is not installed (make bench-reading sets it up)",
    "Tesseract": "tesseract is not installed (Debian: apt-get install tesseract-ocr)",
}
"""What is said where a reader is missing."""


def cut_out(image: Image.Image, box: Box, scale: tuple[float, float]) -> Image.Image:
    """The line in `box`, which is in pixels of a picture whose sides are `1 / scale` of this one's."""
    left, top, right, bottom = (edge * scale[i % 2] for i, edge in enumerate(box))
    margin = MARGIN * (bottom - top)
    left, top = max(0.0, left - margin), max(0.0, top - margin)
    right, bottom = min(image.width, right + margin), min(image.height, bottom + margin)
    width = max(8, round((right - left) / scale[0] * HEIGHT / ((bottom - top) / scale[1])))
    return image.resize((width, HEIGHT), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def is_there(reader: str) -> bool:
    if reader == "Tesseract":
        return shutil.which("tesseract") is not None
    try:
        import rapidocr_onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _recogniser() -> Callable[[list[np.ndarray]], tuple[list[tuple[str, float]], float]]:
    from rapidocr_onnxruntime import RapidOCR

    # one line at a time: in a batch a line is padded to the width of its neighbours, which changes what is read
    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1, rec_batch_num=1).text_rec


def _pp_ocr(lines: Sequence[Image.Image]) -> list[str]:
    found, _ = _recogniser()([np.asarray(line)[..., ::-1] for line in lines])  # RGB -> BGR
    return [text for text, _ in found]


def _tesseract(lines: Sequence[Image.Image]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{i}.png") for i in range(len(lines))]
        for path, line in zip(paths, lines, strict=True):
            line.save(path, compress_level=1)
        names = Path(folder, "lines.txt")
        names.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
        done = subprocess.run(
            ["tesseract", str(names), "stdout", "--psm", "7", "-l", "eng", "tsv"],
            capture_output=True,
            check=True,
            encoding="utf-8",
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
    header, *rows = (row.split("\t") for row in done.stdout.splitlines())
    page, text = header.index("page_num"), header.index("text")
    pages = {int(row[page]) for row in rows}
    if pages != set(range(1, len(lines) + 1)):
        raise RuntimeError(f"tesseract read {len(pages)} lines of {len(lines)}; its words: {done.stderr[-500:]}")
    words: list[list[str]] = [[] for _ in lines]
    for row in rows:
        words[int(row[page]) - 1] += row[text : text + 1]
    return [" ".join(found) for found in words]


READERS: dict[str, Callable[[Sequence[Image.Image]], list[str]]] = {"PP-OCR": _pp_ocr, "Tesseract": _tesseract}


@cache
def release(reader: str) -> str:
    """What a reading depends on beside the pixels."""
    if reader == "PP-OCR":
        return f"rapidocr-onnxruntime {version('rapidocr-onnxruntime')}, onnxruntime {version('onnxruntime')}"
    done = subprocess.run(["tesseract", "--version"], capture_output=True, check=True, encoding="utf-8")
    return (done.stdout or done.stderr).splitlines()[0]


def read(reader: str, lines: Sequence[Image.Image], cache_file: Path) -> list[str]:
    """What a reader makes of each line; the same pixels are read once, and remembered in `cache_file`."""
    keys = [
        hashlib.sha256(f"{reader} {release(reader)} {line.size}".encode() + line.tobytes()).hexdigest()
        for line in lines
    ]
    with closing(sqlite3.connect(cache_file, timeout=120)) as store:
        store.execute("create table if not exists readings (key text primary key, text text)")
        known: dict[str, str] = {}
        for key in dict.fromkeys(keys):
            known.update(store.execute("select key, text from readings where key = ?", (key,)).fetchall())
    missing = {key: line for key, line in zip(keys, lines, strict=True) if key not in known}
    if missing:
        found = dict(zip(missing, READERS[reader](list(missing.values())), strict=True))
        with closing(sqlite3.connect(cache_file, timeout=120)) as store, store:
            store.executemany("insert or replace into readings values (?, ?)", found.items())
        known |= found
    return [known[key] for key in keys]


def right(wanted: str, found: str) -> float:
    """Character accuracy: 1 − edit distance / length, at least 0; spaces and the width of characters do not count."""
    from rapidfuzz.distance import Levenshtein

    wanted, found = (unicodedata.normalize("NFKC", "".join(text.split())) for text in (wanted, found))
    return max(0.0, 1 - Levenshtein.distance(wanted, found) / len(wanted))
