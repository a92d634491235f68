"""Names of files that came from anywhere: as names of folders that work on every file system, and as text to print."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

LONGEST = 255
"""Bytes of a name, on the usual file systems."""

WINDOWS_DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{name}{place}" for name in ("com", "lpt") for place in range(1, 10)))
)


def folder_names(paths: Sequence[Path], *, taken: Sequence[str] = (), longest: int = LONGEST) -> list[str]:
    """A folder name for each image: its stem, or where two share that, the names with their suffixes.

    No two are the same, also where capitals and accents do not count; none leads elsewhere; all can be typed.

    Args:
        paths: of the images; which is the same twice gets two names.
        taken: names that something else beside the folders has.
        longest: the bytes that a name may have.
    """
    others = {_alike(name) for name in taken}
    stems = Counter(_alike(path.stem) for path in paths)
    names = [
        path.stem if stems[_alike(path.stem)] == 1 and _alike(path.stem) not in others else path.name for path in paths
    ]
    if len({_alike(name) for name in names}) < len(names):
        names = [path.name for path in paths]
    found: list[str] = []
    for name in names:
        safe = unused = cut(safe_name(name), longest)
        place = 2
        while _alike(unused) in others:
            unused = f"{cut(safe, longest - len(f' ({place})'))} ({place})"
            place += 1
        others.add(_alike(unused))
        found.append(unused)
    return found


def folder_name(path: Path, *, longest: int = LONGEST) -> str:
    """Of one image: the same that it has beside others, unless one of them shares its stem."""
    return folder_names([path], longest=longest)[0]


def longest_name(folder: Path) -> int:
    """The bytes that a name in an existing folder may have; encrypting file systems allow less than others."""
    try:
        return max(32, min(LONGEST, os.pathconf(folder, "PC_NAME_MAX")))
    except (AttributeError, OSError, ValueError):  # Windows; a file system that does not say
        return LONGEST


def safe_name(name: str) -> str:
    """The same name where it can be one of a folder: `_` for what cannot be typed, and nothing that means a place."""
    typed = "".join("_" if _is_control(character) or character in "/\\" else character for character in name)
    if not typed.strip(". "):  # nothing, `.`, `..`, and what Windows makes of more of them
        return "_" * max(1, len(typed))
    typed = typed.rstrip(". ") + "_" * (len(typed) - len(typed.rstrip(". ")))
    return f"{typed}_" if typed.split(".")[0].rstrip().lower() in WINDOWS_DEVICES else typed


def cut(name: str, longest: int) -> str:
    """The name's beginning that fits into so many bytes of UTF-8, without half a character."""
    return name.encode()[:longest].decode(errors="ignore")


def readable(text: str) -> str:
    """Text that can be printed: bytes that are no UTF-8 as `\\xe9`, control characters as Python writes them."""
    return "".join(
        f"\\x{ord(character) - 0xDC00:02x}"
        if "\udc80" <= character <= "\udcff"
        else repr(character)[1:-1]
        if _is_control(character)
        else character
        for character in text
    )


def _is_control(character: str) -> bool:
    """What a terminal would obey, a line would end at, or no encoding has (half a character)."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDIRECTIONAL


BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They turn what is printed after them around."""


def _alike(name: str) -> str:
    """Equal for names that are one and the same on some file system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
