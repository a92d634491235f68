"""What is installed is pinned, what is read is data and never code, and SECURITY.md says what is so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.test_packaging import PTH, START
from transformers_apt.engine import startup

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins_in(path):
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


PINS = pins_in(ROOT / "constraints.txt")
SERVING = ROOT / "tests" / "serving" / "requirements.txt"
BYSTANDERS = sorted((ROOT / "tests" / "bystanders" / "requirements").glob("*.txt"))
ROOMS = ("apt_code", "src", "debug", "benchmarks", "docs", "examples")
SOURCES = sorted(path for folder in ROOMS for path in (ROOT / folder).rglob("*.py"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements():
    """Every requirement of the project and its extras, but those on its own extras."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [text for group in groups for text in group if not text.startswith("transformers-apt[")]


def names_of(pins):
    return [normal(pin.split("==")[0]) for pin in pins]


@pytest.mark.parametrize("path", [ROOT / "constraints.txt", SERVING, *BYSTANDERS], ids=str)
def test_every_pin_is_exact_and_there_once(path):
    pins = pins_in(path)
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+!]*", pin), f"{pin!r} does not name one version"
    assert len(pins) == len(set(names_of(pins)))


def test_the_programs_beside_this_one_move_no_pin():
    """Their environments lie over the main one, and what they add comes first."""
    assert len(BYSTANDERS) >= 6
    for path in BYSTANDERS:
        shared = [pin for pin in pins_in(path) if names_of([pin])[0] in names_of(PINS)]
        assert set(shared) <= set(PINS), path.name


def test_every_requirement_is_pinned_within_its_own_range():
    pins = {normal(name): version for name, version in (pin.split("==") for pin in PINS)}
    specifiers = pytest.importorskip("packaging.requirements")
    for text in requirements():
        requirement = specifiers.Requirement(text)
        assert normal(requirement.name) in pins, f"{text!r} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[normal(requirement.name)]), f"{text!r} excludes its own pin"
        assert requirement.url is None, f"{text!r} is not from the package index"


def calls_in(path):
    """`(dotted name, call)` of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


ALLOWED = {("apt_code/kernel_cache.py", "pickle.loads")}
"""numba's cache of compiled kernels, in a folder of the user's own, is pickles; ours is read after its digest."""


def check(path):
    for name, call in calls_in(path):
        if any(path.as_posix().endswith(file) and name == allowed for file, allowed in ALLOWED):
            continue
        place = f"{path}:{call.lineno}: {name}"
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), place
        assert not re.match(r"(c?[Pp]ickle|dill|marshal|shelve|joblib|cloudpickle)\.", name), place
        assert name.split(".")[-1] not in ("unsafe_load", "read_pickle"), place
        if name in ("torch.load", "torch.jit.load", "np.load", "numpy.load"):
            safe = {"torch.load": "weights_only"}.get(name)
            value = given.get(safe) if safe else None
            assert isinstance(value, ast.Constant) and value.value is True, f"{place} without weights_only=True"
        for forbidden in ("trust_remote_code", "shell", "allow_pickle"):
            value = given.get(forbidden)
            harmless = value is None or (isinstance(value, ast.Constant) and value.value is False)
            assert harmless, f"{place}({forbidden}=…)"
        if name.endswith("save_pretrained"):
            assert "safe_serialization" not in given, f"{place}: weights are written as safetensors"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_code_that_it_reads(path):
    check(path)


def test_the_scan_sees_what_it_looks_for(tmp_path):
    for bad in ("eval(x)", "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "os.system('x')",
                "f(trust_remote_code=True)", "run(c, shell=yes)", "np.load(f)"):  # fmt: skip
        path = tmp_path / "bad.py"
        path.write_text(bad)
        with pytest.raises(AssertionError):
            check(path)


def test_no_source_asks_the_network_by_itself():
    """Downloading is transformers' own doing; the page's server is gradio's. One asks the server that it starts."""
    for path in SOURCES:
        if path == ROOT / "benchmarks" / "vllm_server.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top not in ("requests", "httpx", "urllib3", "aiohttp", "socket", "ftplib", "telnetlib"), path
                assert name not in ("urllib.request", "http.client"), path


def test_security_page_says_what_is_installed():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"```text\n{PTH}```" in page and f"```text\n{START}```" in page
    assert startup.SWITCH in page
    for word in startup._OFF_WORDS:
        assert f"`{word}`" in page
