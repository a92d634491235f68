"""The hook in a real installation of the wheel: every way to start Python, broken installations, and removal.

A small stand-in for transformers has the modules that the hook waits for and none of the classes that the patch needs,
as a half-installed one would; where the real one matters, it is the one these tests run with.
"""

import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
import transformers

from tests.test_packaging import WAITING, build, call

REAL = str(Path(transformers.__file__).parents[1])
TARGET = "transformers.models.qwen2_vl.modeling_qwen2_vl"
PATCHED = f"""
import inspect
from {TARGET} import Qwen2VLForConditionalGeneration as Model
print("image_patch_layout" in inspect.signature(Model.forward).parameters)
"""


class Installed:
    """A virtual environment with the wheel, and nothing else."""

    def __init__(self, folder, wheel):
        call(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        self.python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.wheel = wheel
        self.pip = (sys.executable, "-m", "pip", "--python", self.python)
        call(*self.pip, "install", "--no-deps", wheel)
        self.site = Path(call(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    def run(self, *arguments, **variables):
        unwanted = ("TRANSFORMERS_APT", "PYTHON", "COV_", "COVERAGE_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        return subprocess.run(
            [self.python, *map(str, arguments)],
            env=inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables,
            cwd=self.site.anchor,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    return Installed(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture
def installed(environment, tmp_path):
    """The installation as it was made, whatever the test before did to it."""
    kept = tmp_path / "kept"
    shutil.copytree(environment.site, kept)
    yield environment
    shutil.rmtree(environment.site, ignore_errors=True)  # pip removes the folder with the last file in it
    shutil.copytree(kept, environment.site)


@pytest.fixture
def half_installed(installed):
    """Modules without classes, as an interrupted installation or another package of the name would have them."""
    folder = installed.site / "transformers" / "models" / "qwen2_vl"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent, folder.parent.parent):
        (place / "__init__.py").write_text("")
    (folder / "modeling_qwen2_vl.py").write_text("class Qwen2VLModel:\n    pass\n")
    return installed


def says(done, *lines):
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == list(lines)


@pytest.mark.parametrize(
    ("flags", "variables", "waiting"),
    [
        ((), {}, "True"),
        (("-I",), {}, "True"),
        (("-P", "-s", "-E"), {}, "True"),
        (("-O",), {}, "True"),
        (("-S",), {}, "False"),
        (("-S", "-I"), {}, "False"),
        ((), {"TRANSFORMERS_APT": "0"}, "False"),
        (("-I",), {"TRANSFORMERS_APT": "0"}, "False"),  # the variable is not one of Python's own
    ],
    ids=str,
)
def test_ways_to_start_python(installed, flags, variables, waiting):
    says(installed.run(*flags, "-c", WAITING, **variables), waiting)


def test_the_real_transformers_in_an_isolated_python(installed):
    path = "import sys; sys.path += " + repr([REAL, *[path for path in sys.path if path.endswith("site-packages")]])
    done = installed.run("-I", "-c", path + PATCHED)
    assert (done.returncode, done.stdout.split()) == (0, ["True"]), done.stderr


def test_a_zipapp_run_by_the_environments_python(installed, tmp_path):
    source = tmp_path / "app"
    source.mkdir()
    (source / "__main__.py").write_text(WAITING)
    zipapp.create_archive(source, tmp_path / "app.pyz")
    says(installed.run(tmp_path / "app.pyz"), "True")


def test_inside_a_zipapp_it_waits_once_it_is_asked_to(installed, tmp_path):
    """Python reads no .pth file inside an archive."""
    source = tmp_path / "app"
    call(*installed.pip, "install", "--no-deps", "--target", source, installed.wheel)
    call(*installed.pip, "uninstall", "--yes", "transformers-apt")
    (source / "__main__.py").write_text(
        f"{WAITING}\nfrom transformers_apt.engine import startup; startup.install()\n{WAITING}\n"
        "print(__file__.count('.pyz'))"
    )
    zipapp.create_archive(source, tmp_path / "app.pyz")
    says(installed.run(tmp_path / "app.pyz"), "False", "True", "1")


def test_a_target_folder_is_on_where_site_reads_it(installed, tmp_path):
    folder = tmp_path / "lib"
    call(*installed.pip, "install", "--no-deps", "--target", folder, installed.wheel)
    call(*installed.pip, "uninstall", "--yes", "transformers-apt")
    assert (folder / "transformers_apt.pth").is_file()
    says(installed.run("-c", WAITING, PYTHONPATH=str(folder)), "False")
    says(installed.run("-c", f"import site; site.addsitedir({str(folder)!r})\n{WAITING}"), "True")
    says(
        installed.run(
            "-c", f"import transformers_apt.engine.startup as s; s.install()\n{WAITING}", PYTHONPATH=str(folder)
        ),
        "True",
    )


def test_a_half_installed_transformers_is_left_alone_with_one_warning(half_installed):
    done = half_installed.run(
        "-c",
        f"import {TARGET} as m; from transformers.models import qwen2_vl; print(vars(m.Qwen2VLModel).get('forward'))",
    )
    assert (done.returncode, done.stdout.split()) == (0, ["None"]), done.stderr
    assert done.stderr.count("RuntimeWarning: transformers-apt is installed but stays off") == 1
    assert "transformers is not installed" in done.stderr and "Traceback" not in done.stderr
    says(half_installed.run("-c", f"import {TARGET}", TRANSFORMERS_APT="0"))


def test_transformers_metadata_without_a_usable_version(half_installed):
    """What an interrupted upgrade leaves: a folder of metadata without a version in it."""
    folder = half_installed.site / "transformers-5.23.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\n")
    done = half_installed.run("-c", f"import {TARGET}; print('imported')")
    assert (done.returncode, done.stdout.split()) == (0, ["imported"]), done.stderr
    assert done.stderr.count("RuntimeWarning: transformers-apt") == 1 and "Traceback" not in done.stderr


def test_an_error_in_transformers_itself_is_transformers_own(half_installed):
    module = half_installed.site / "transformers" / "models" / "qwen2_vl" / "modeling_qwen2_vl.py"
    module.write_text("class Qwen2VLModel:\n    pass\n\n1 / 0\n")
    done = half_installed.run("-c", f"import {TARGET}")
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "transformers_apt/engine/patching" not in done.stderr and "transformers-apt" not in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("engine/startup.py", "raise RuntimeError('crash')\n"),
        ("engine/startup.py", "def install(:\n"),
        ("engine/startup.py", ""),
        ("engine/startup.py", "import no_such_module_at_all\n"),
        ("__init__.py", "1 / 0\n"),
        ("__init__.py", "\0\0\0"),
    ],
    ids=repr,
)
def test_a_crash_inside_the_hook_does_not_stop_python(installed, name, content):
    (installed.site / "transformers_apt" / name).write_text(content)
    done = installed.run("-c", "print('started')")
    assert (done.returncode, done.stdout.split()) == (0, ["started"])
    assert "transformers_apt.pth" in done.stderr, "Python itself names the file whose line failed"


def test_a_crash_when_the_patch_is_applied_does_not_stop_the_import(half_installed):
    (half_installed.site / "transformers_apt" / "engine" / "patching.py").write_text("1 / 0\n")
    done = half_installed.run("-c", f"import {TARGET}; print('imported')")
    assert (done.returncode, done.stdout.split()) == (0, ["imported"]), done.stderr
    assert done.stderr.count("RuntimeWarning: transformers-apt") == 1 and "ZeroDivisionError" in done.stderr


def test_the_packages_gone_and_the_pth_left(installed):
    for path in (installed.site / "transformers_apt").iterdir():
        if path.is_file():
            path.unlink()
    (installed.site / "transformers_apt").rename(installed.site / "gone")
    says(installed.run("-c", "print('started')"), "started")


def test_uninstalled_after_use_nothing_is_left(half_installed):
    """Nor what Python wrote meanwhile: compiled files stand beside their sources, where pip finds them."""
    half_installed.run("-c", f"import {TARGET}")
    assert list(half_installed.site.glob("transformers_apt/__pycache__/*.pyc")), "nothing was compiled"
    call(*half_installed.pip, "uninstall", "--yes", "transformers-apt")
    left = [path for path in half_installed.site.rglob("*") if "apt" in path.name.lower() and path.is_file()]
    assert left == []
    says(half_installed.run("-c", WAITING), "False")
