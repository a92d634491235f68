"""The documentation does what it says: its code runs, its commands exist, its links lead somewhere."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from skimage import data
from transformers import Qwen2VLImageProcessor
from typer.testing import CliRunner

import transformers_apt
from apt_code.entropy_utils import IMPORTANCE_METHODS
from apt_code.selection_settings import SELECTION_METHODS
from transformers_apt import embedded
from transformers_apt.cli.main import app
from transformers_apt.embedded.tiny_checkpoint import save_checkpoint
from transformers_apt.models.image_files import load_photo
from transformers_apt.models.settings import DEFAULTS, OFF, RECOMMENDED

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
CHECKPOINT = '"Qwen/Qwen2-VL-2B-Instruct"'
ANOTHER_FAMILYS = '"Qwen/Qwen3-VL-2B-Instruct"'


@dataclass(frozen=True)
class Block:
    """A fenced code block and the line its content starts at."""

    language: str
    content: str
    line: int
    follows: bool
    """Nothing but blank lines is between it and the block before it."""


def blocks_of(page):
    text, found, end = (ROOT / page).read_text(encoding="utf-8"), [], 0
    for match in re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(2)].count("\n") + 1
        found.append(Block(match[1], match[2], line, bool(found) and not text[end : match.start()].strip()))
        end = match.end()
    return found


def pages_with(language):
    return [page for page in PAGES if any(block.language == language for block in blocks_of(page))]


def test_every_page_is_looked_at():
    """A page that is moved must not leave the tests unseen."""
    assert {"README.md", "README_zh.md", "docs/answer.md", "docs/usage.md", "docs/quick_reference.md"} <= set(PAGES)
    assert {"README.md", "docs/answer.md", "docs/usage.md", "docs/implementation.md"} <= set(pages_with("python"))


@pytest.mark.parametrize("page", PAGES)
def test_list_numbers_start_their_lines(page):
    """A number that a reflow has moved to the end of another step is no step any more."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^.*(?:[.:;!?] |[。：；])\d+\.(?: .*)?$", text, re.MULTILINE)


# ---------------------------------------------------------------- Python


@pytest.fixture
def workplace(folder, tmp_path, monkeypatch):
    """An empty folder with the photo that the pages open; what they do to the process is undone."""
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.jpg", format="PNG")  # lossless: its counts never change
    monkeypatch.chdir(tmp_path)
    yield folder
    transformers_apt.apply()


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("qwen3_vl"), family="qwen3_vl")


@pytest.mark.parametrize("page", [page for page in pages_with("python") if page != "README_zh.md"])
def test_python_blocks_run_and_print_what_the_page_shows(page, workplace, qwen3_vl):
    """One after the other, in one namespace. A `text` block right after one is what it prints."""
    namespace = {"__name__": "page"}
    if page == "docs/quick_reference.md":  # its one line assumes what every other page sets up
        namespace |= prepared(workplace)
    printed = None
    for block in blocks_of(page):
        if block.language == "python":
            content = block.content.replace(CHECKPOINT, repr(str(workplace)))
            content = content.replace(ANOTHER_FAMILYS, repr(str(qwen3_vl)))
            code = compile("\n" * (block.line - 1) + content, ROOT / page, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed = out.getvalue()
        elif block.language == "text" and block.follows and printed is not None:
            assert printed == block.content, f"{page}, line {block.line}"
            printed = None


def prepared(folder):
    from transformers import Qwen2VLProcessor

    prompt = "<|vision_start|><|image_pad|><|vision_end|>What is this?"
    return {"processor": Qwen2VLProcessor.from_pretrained(folder), "image": Image.open("photo.jpg"), "prompt": prompt}


# ---------------------------------------------------------------- commands


def commands_of(page):
    """`(line, words)` of each command in the page's `bash` blocks."""
    found = []
    for block in blocks_of(page):
        if block.language != "bash":
            continue
        for line in block.content.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


COMMANDS = [(page, words) for page in PAGES for words in commands_of(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_commands_exist_and_know_their_options(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if name == "make":
        for target in (word for word in arguments if "=" not in word):
            assert target in make_targets()
    elif name == "transformers-apt":
        assert_known(arguments, CliRunner().invoke(app, [arguments[0], "--help"], terminal_width=200))
    elif name == "pip":
        assert_installable(arguments)
    elif name.startswith("python"):
        assert_python_command(arguments, monkeypatch)
    elif name == "git":
        assert arguments[0] == "clone"
    elif name == "pre-commit":
        assert arguments == ["install"]
    elif name == "vllm":  # not installed here: tests/serving asks it for the options
        assert arguments[0] == "serve"
    elif name == "curl":
        assert json.loads(arguments[-1])["messages"]
    else:
        assert name.startswith("./"), f"{page}: this test does not know {name}"
        assert os.access(ROOT / name, os.X_OK)


def make_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def assert_installable(arguments):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] in ("install", "uninstall")
    for word in arguments[1:]:
        if match := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(match[1].split(",")) <= set(extras)
        elif word.endswith(".txt"):
            assert (ROOT / word).is_file()
        else:
            assert word in ("-e", "-r", "-c", ".", "transformers-apt") or word.startswith("vllm=="), word


def assert_python_command(arguments, monkeypatch):
    if arguments[0] == "-c":
        exec(compile(arguments[1], "command", "exec"), {})
    elif arguments[0] == "-m" and arguments[1] == "pytest":
        assert all((ROOT / word).exists() for word in arguments[2:] if not word.startswith("-"))
    elif arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None
        monkeypatch.delitem(sys.modules, arguments[1], raising=False)  # runpy warns of a module that is there already
        assert_known(arguments[2:], helped(lambda: runpy.run_module(arguments[1], run_name="__main__"), monkeypatch))
    elif arguments[0] != "my_program.py":
        path = ROOT / arguments[0]
        assert path.is_file(), path
        if arguments[1:]:
            assert_known(arguments[1:], helped(lambda: runpy.run_path(str(path), run_name="__main__"), monkeypatch))


@dataclass
class Help:
    exit_code: int
    output: str


def helped(run, monkeypatch):
    """What `--help` prints, in this process: importing torch and transformers is what takes the time."""
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stopped:
        run()
    return Help(stopped.value.code or 0, out.getvalue())


def assert_known(arguments, answer):
    assert answer.exit_code == 0, answer.output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", answer.output)
    for option in (word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", plain), f"{option} is not in:\n{plain}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_the_text_exist(page):
    """`make x`, `python -m x` and `transformers-apt x` in a sentence or a table."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= make_targets()
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert importlib.util.find_spec(module) is not None, module
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"`transformers-apt ([a-z]+)", text)) <= known


@pytest.mark.parametrize("page", PAGES)
def test_files_within_the_text_exist(page):
    """A file that moves must not leave its old path behind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    bases = [ROOT / base for base in ("", "src", "src/transformers_apt", "tests/transformers_apt")]
    for path in set(re.findall(r"`((?:[\w.]+/)+\w+\.py|test_\w+\.py)`", text)):
        assert any((base / path).is_file() for base in bases), f"{page} names {path}"


def test_quick_reference_names_every_setting_and_value():
    """What is added to the code is added to its tables."""
    text = (ROOT / "docs/quick_reference.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (\S+)", text, re.MULTILINE)
    values = [f'`"{name}"`' for name in (*SELECTION_METHODS, OFF, *IMPORTANCE_METHODS)]
    assert {*values, *(f"`{name}`" for name in DEFAULTS)} <= set(first_cells)
    for name, method in IMPORTANCE_METHODS.items():
        (row,) = re.findall(rf'^\| `"{name}"` .*', text, re.MULTILINE)
        shown = ", ".join(f"{value:g}" for value in method.thresholds(3))
        assert row.endswith(f"| {method.unit} | `[{shown}]` |"), row
    for name, default in DEFAULTS.items():
        row = re.findall(rf"^\| `{name}` .*", text, re.MULTILINE)[0]  # of the first table
        assert (f'`"{default}"`' if isinstance(default, str) else f"`{default}") in row


# ---------------------------------------------------------------- links


def anchors_of(page):
    """GitHub's names of the headings."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_in_plain_markdown_too(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors_of(os.path.relpath(found, ROOT)), f"{page} links to {target}"


# ---------------------------------------------------------------- the two READMEs

README, README_ZH = "README.md", "README_zh.md"


def sections_of(page):
    """`(heading level, text)` of each part, code blocks taken out."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"^(#+) ", text, flags=re.MULTILINE)
    return [(len(level), body) for level, body in zip(parts[1::2], parts[2::2], strict=True)]


def in_step(find):
    """The same from both, section by section."""
    english, chinese = sections_of(README), sections_of(README_ZH)
    assert len(english) == len(chinese)
    for (_, one), (_, other) in zip(english, chinese, strict=True):
        assert find(one) == find(other), one.splitlines()[0]


def test_readmes_have_the_same_headings():
    assert [level for level, _ in sections_of(README)] == [level for level, _ in sections_of(README_ZH)]


def test_readmes_have_the_same_code_blocks():
    """Word for word, so that running the English ones runs both."""
    english, chinese = ([(b.language, b.content) for b in blocks_of(page)] for page in (README, README_ZH))
    assert english == chinese
    assert len(english) > 1


def test_readmes_have_the_same_tables():
    """As many rows and columns, the same code and the same figures in each cell."""

    def cells(text):
        rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
        return [[(re.findall(r"`[^`]+`", cell), sorted(re.findall(r"\d+", cell))) for cell in row] for row in rows]

    in_step(cells)
    assert sum(map(len, (cells(text) for _, text in sections_of(README)))) > 5


def test_readmes_name_the_same_code_figures_and_links():
    def words(pattern):
        return lambda text: sorted(re.findall(pattern, " ".join(text.split())))

    in_step(words(r"`[^`]+`"))
    in_step(words(r"\d[\d,.]*\d|\d"))
    in_step(words(r"\]\(((?!README)[^)]+)\)"))  # but for their links to each other


# ---------------------------------------------------------------- the scripts and the site


@pytest.mark.slow
@pytest.mark.parametrize("script", ["quick_start", "demo_patch_selection"])
def test_script_runs_to_its_end_without_a_download(script, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / f"{script}.py"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = load_photo(embedded.examples()[0].image)
    inputs = Qwen2VLImageProcessor()(image, **RECOMMENDED, return_tensors="pt")
    assert f"{len(inputs['pixel_values']):,} of {int(inputs['image_grid_thw'].prod()):,} patches" in done.stdout
    assert "very small model" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_site_builds_without_a_warning_and_needs_no_other_server(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-W", "--keep-going", "--quiet", ".", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "README.html", "README_zh.html"} <= {page.name for page in pages}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)", html)
        loaded += re.findall(r"<link\b[^>]*\brel=\"(?:stylesheet|preload|icon)\"[^>]*\bhref=\"([^\"]+)", html)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page
    styles = "\n".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"(?:url\(|@import)\s*[\"']?https?:", styles)
