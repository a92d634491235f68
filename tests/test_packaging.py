"""What the wheel, the source distribution and the editable wheel contain, and what installing them leaves behind."""

import email
import os
import pkgutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import transformers_apt
from transformers_apt.engine import startup

ROOT = Path(__file__).parents[1]
VERSION = transformers_apt.__version__
DIST_INFO = f"transformers_apt-{VERSION}.dist-info"
PTH = (
    'import importlib.machinery; importlib.machinery.PathFinder.find_spec("transformers_apt") and '
    '__import__("transformers_apt.engine.startup").engine.startup.install()\n'
)
START = "transformers_apt.engine.startup:install\n"
HOOK = "transformers_apt.engine.finder"
WAITING = f"import sys; print([f for f in sys.meta_path if type(f).__module__ == {HOOK!r}] != [])"


def call(*command: object, cwd: Path = ROOT) -> str:
    """Run a command without network and without a word to the hook from outside; return what it printed."""
    unwanted = ("TRANSFORMERS_APT", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, target: str, source: Path = ROOT) -> Path:
    call(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    return build(tmp_path_factory.mktemp("editable"), "wheel:editable")


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def sources() -> set[str]:
    """The wheel's name of every source file of both packages in this checkout."""
    return {
        path.relative_to(base).as_posix()
        for base, package in ((ROOT, "apt_code"), (ROOT / "src", "transformers_apt"))
        for path in (base / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_both_packages_the_two_start_files_and_nothing_else(wheel):
    files = contents(wheel)
    top = {name.split("/")[0] for name in files}
    assert top == {"apt_code", "transformers_apt", "transformers_apt.pth", "transformers_apt.start", DIST_INFO}
    assert {name for name in files if name.startswith(("apt_code/", "transformers_apt/"))} == sources()
    embedded = {"model/model.safetensors", "model/README.md", "examples/sign.png", "examples/questions.jsonl"}
    assert {f"transformers_apt/embedded/{name}" for name in embedded} <= set(files)
    assert wheel.stat().st_size < 12e6
    assert files["transformers_apt.pth"] == PTH
    assert files["transformers_apt.start"] == START


def test_start_files_name_the_function_that_exists():
    assert pkgutil.resolve_name(START.strip()) is startup.install
    # site runs one line at a time, and only lines that begin with import
    assert PTH.startswith("import ") and PTH.count("\n") == 1
    compile(PTH, "transformers_apt.pth", "exec")


def test_metadata(wheel):
    files = contents(wheel)
    metadata = email.message_from_string(files[f"{DIST_INFO}/METADATA"])
    assert metadata["Name"] == "transformers-apt"
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    runtime = [requirement for requirement in metadata.get_all("Requires-Dist") if "extra ==" not in requirement]
    assert "transformers<6,>=5.18" in runtime
    assert {requirement.split("<")[0].split(">")[0] for requirement in runtime} == {
        *("einops", "loguru", "numba", "numpy", "pillow", "rich", "torch", "torchvision", "transformers", "typer"),
    }
    assert {"viz", "bench", "docs", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert "transformers-apt = transformers_apt.cli.main:main" in files[f"{DIST_INFO}/entry_points.txt"]
    assert "Apache License" in files[f"{DIST_INFO}/licenses/LICENSE"]
    assert f"{DIST_INFO}/licenses/NOTICE" in files


def test_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    for name in ("LICENSE", "NOTICE", "constraints.txt", "Makefile", "tests/test_packaging.py"):
        assert (unpacked / name).is_file(), name
    again = build(tmp_path / "again", "wheel", source=unpacked)
    assert contents(again).keys() == contents(wheel).keys()


def test_editable_wheel_points_here_before_the_hook_is_called(editable):
    files = contents(editable)
    path_file, hook = sorted(name for name in files if name.endswith(".pth"))  # the order in which site reads them
    assert [Path(line) for line in files[path_file].splitlines()] == [ROOT, ROOT / "src"]
    assert (hook, files[hook], files["transformers_apt.start"]) == ("transformers_apt.pth", PTH, START)
    assert not [name for name in files if name.endswith(".py")]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installed_it_waits_and_uninstalled_nothing_is_left(kind, request, tmp_path):
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    folder = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    before = files_in(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)

    call(*pip, "install", "--no-deps", request.getfixturevalue(kind))
    assert {"transformers_apt.pth", "transformers_apt.start"} <= {path.name for path in folder.iterdir()}
    assert call(python, "-c", WAITING, cwd=tmp_path).strip() == "True"
    where = call(python, "-c", "import transformers_apt; print(transformers_apt.__file__)", cwd=tmp_path).strip()
    assert Path(where).parent == (folder if kind == "wheel" else ROOT / "src") / "transformers_apt"

    call(*pip, "uninstall", "--yes", "transformers-apt")
    assert files_in(tmp_path / "venv") == before
    assert call(python, "-c", WAITING, cwd=tmp_path).strip() == "False"
