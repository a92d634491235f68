"""Rooms import those above them in CONTRIBUTING's table, and never the other way round."""

import ast
from pathlib import Path

import pytest

import transformers_apt

PACKAGE = Path(transformers_apt.__file__).parent
ROOMS = ("engine", "models", "serving", "training", "embedded", "visualizer", "app", "cli")


def imported(file):
    """The rooms that a file imports anywhere, also inside a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == PACKAGE.name and len(part) > 1} & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_room_below_it(room):
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    below = set(ROOMS[ROOMS.index(room) + 1 :])
    found = {file.relative_to(PACKAGE).as_posix(): imported(file) & below for file in files}
    assert not {name: rooms for name, rooms in found.items() if rooms}


def test_the_test_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("def f():\n    from transformers_apt import training\n    import transformers_apt.cli.main\n")
    assert imported(file) == {"training", "cli"}
