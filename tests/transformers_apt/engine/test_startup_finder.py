"""The post-import finder on small made-up packages, in this process."""

import importlib
import importlib.util
import sys
import threading
import types
import warnings
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "src" / "transformers_apt"


def fresh_copy(path: Path) -> types.ModuleType:
    """A second copy of a module that start-up has already imported, so that its top level counts here."""
    spec = importlib.util.spec_from_file_location(f"fresh_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def startup():
    return fresh_copy(SOURCE / "engine" / "startup.py")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package `madeup` and takes everything off again."""
    folder = tmp_path / "madeup"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)

    def write(**sources: str) -> None:
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield write
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.split(".")[0] == "madeup"]:
        del sys.modules[name]


class Calls:
    """A callback that counts, and notes which target modules were complete when it was called."""

    def __init__(self, done: bool = True) -> None:
        self.count = 0
        self.complete: set[str] = set()
        self.done = done

    def __call__(self) -> bool:
        self.count += 1
        self.complete = {n for n, m in sys.modules.items() if n.startswith("madeup.") and hasattr(m, "COMPLETE")}
        return self.done


def wait_for(startup, calls, *targets):
    finder = startup.PostImportFinder({f"madeup.{name}" for name in targets}, calls)
    sys.meta_path.insert(0, finder)
    return finder


def test_calls_once_after_the_outermost_of_nested_imports(startup, package):
    package(outer="from madeup import inner\nCOMPLETE = 1", inner="COMPLETE = 1", other="COMPLETE = 1")
    calls = Calls()
    finder = wait_for(startup, calls, "outer", "inner", "other")

    importlib.import_module("madeup.outer")
    assert calls.count == 1
    assert calls.complete == {"madeup.outer", "madeup.inner"}
    assert finder not in sys.meta_path

    importlib.import_module("madeup.other")
    assert calls.count == 1


def test_waits_for_companions_but_not_because_of_them(startup, package):
    package(companion_a="COMPLETE = 1", companion_b="from madeup import target\nCOMPLETE = 1", target="COMPLETE = 1")
    calls = Calls()
    sys.meta_path.insert(0, startup.PostImportFinder({"madeup.target"}, calls, together_with="madeup.companion_"))
    importlib.import_module("madeup.companion_a")
    assert calls.count == 0
    importlib.import_module("madeup.companion_b")
    assert calls.count == 1
    assert calls.complete == {"madeup.companion_a", "madeup.companion_b", "madeup.target"}


def test_a_callback_that_imports_the_other_targets_is_not_called_again(startup, package):
    package(first="COMPLETE = 1", second="COMPLETE = 1")
    calls = []

    def callback() -> bool:
        calls.append(importlib.import_module("madeup.second").COMPLETE)
        return True

    wait_for(startup, callback, "first", "second")
    importlib.import_module("madeup.first")
    assert calls == [1]


def test_other_modules_are_left_alone(startup, package):
    package(target="COMPLETE = 1", bystander="COMPLETE = 1")
    calls = Calls()
    finder = wait_for(startup, calls, "target")
    importlib.import_module("madeup.bystander")
    assert calls.count == 0
    assert finder.find_spec("madeup.bystander") is None
    assert finder.find_spec("json") is None


def test_the_exception_of_a_failing_target_passes_unchanged_and_the_wait_goes_on(startup, package):
    package(broken="from madeup import inner\nraise KeyError('its own')", inner="COMPLETE = 1", good="COMPLETE = 1")
    calls = Calls()
    finder = wait_for(startup, calls, "broken", "inner", "good")
    with pytest.raises(KeyError, match="its own"):
        importlib.import_module("madeup.broken")
    assert "madeup.broken" not in sys.modules
    # inner came in as part of an import that failed as a whole; the next good import is the time to act
    assert finder in sys.meta_path
    importlib.import_module("madeup.good")
    assert calls.count == 1
    assert finder not in sys.meta_path


def test_a_module_that_does_not_exist_is_still_not_found(startup, package):
    wait_for(startup, Calls(), "missing")
    with pytest.raises(ModuleNotFoundError, match=r"madeup\.missing"):
        importlib.import_module("madeup.missing")


def test_spec_and_loader_are_those_python_would_have_used(startup, package):
    package(target="COMPLETE = 1")
    plain = importlib.util.find_spec("madeup.target")
    wait_for(startup, Calls(), "target")
    watched = importlib.util.find_spec("madeup.target")  # asking alone, without importing
    module = importlib.import_module("madeup.target")
    assert plain is not None
    for spec in (watched, module.__spec__):
        assert type(spec.loader) is type(plain.loader)
        assert (spec.name, spec.origin, spec.cached) == (plain.name, plain.origin, plain.cached)
        assert spec.loader.get_source("madeup.target") == "COMPLETE = 1"
        assert spec.loader.get_resource_reader("madeup.target") is not None
    assert module.__loader__ is module.__spec__.loader
    assert "exec_module" not in vars(module.__loader__), "the wrapper must be gone once the module is imported"


def test_one_loader_for_several_modules(startup, package, tmp_path):
    archive = tmp_path / "zipped.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in ("__init__", "one", "two", "bystander"):
            zipped.writestr(f"madeup_zip/{name}.py", "from madeup_zip import bystander" if name == "one" else "")
    sys.path.insert(0, str(archive))
    calls = Calls()
    finder = startup.PostImportFinder({"madeup_zip.one", "madeup_zip.two"}, calls)
    sys.meta_path.insert(0, finder)
    try:
        assert importlib.util.find_spec("madeup_zip.two") is not None
        importlib.import_module("madeup_zip.one")
        assert calls.count == 1
        importlib.import_module("madeup_zip.two")
        assert calls.count == 1
    finally:
        sys.path.remove(str(archive))
        for name in [name for name in sys.modules if name.startswith("madeup_zip")]:
            del sys.modules[name]


def test_a_loader_that_is_a_class_is_not_changed(startup, package):
    class ClassLoader:
        answer = 42

        @staticmethod
        def create_module(spec):
            return None

        @staticmethod
        def exec_module(module):
            module.COMPLETE = 1

        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            return importlib.util.spec_from_loader(fullname, cls) if fullname == "madeup.synthetic" else None

    package()
    before = ClassLoader.exec_module
    sys.meta_path.insert(0, ClassLoader)
    calls = Calls()
    wait_for(startup, calls, "synthetic")
    module = importlib.import_module("madeup.synthetic")
    assert module.COMPLETE == 1 and calls.count == 1
    assert ClassLoader.exec_module is before
    assert module.__spec__.loader.answer == 42


def test_a_finder_that_asks_all_finders_does_not_send_us_in_circles(startup, package):
    package(target="COMPLETE = 1")

    class AsksEveryone:
        def find_spec(self, fullname, path=None, target=None):
            if fullname != "madeup.target":
                return None
            others = [finder for finder in sys.meta_path if finder is not self]
            return next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)

    calls = Calls()
    wait_for(startup, calls, "target")
    sys.meta_path.insert(1, AsksEveryone())
    importlib.import_module("madeup.target")
    assert calls.count == 1


def test_a_callback_that_is_not_done_is_called_after_the_next_target(startup, package):
    package(first="COMPLETE = 1", second="COMPLETE = 1")
    calls = Calls(done=False)
    finder = wait_for(startup, calls, "first", "second")
    importlib.import_module("madeup.first")
    assert calls.count == 1 and finder in sys.meta_path
    calls.done = True
    importlib.import_module("madeup.second")
    assert calls.count == 2 and finder not in sys.meta_path


def test_a_callback_that_takes_the_finder_off_but_is_not_done(startup, package):
    package(first="COMPLETE = 1", second="COMPLETE = 1")
    answers = [True, False]

    def callback() -> bool:
        startup.uninstall()
        return answers.pop()

    finder = wait_for(startup, callback, "first", "second")
    importlib.import_module("madeup.first")
    assert finder in sys.meta_path
    importlib.import_module("madeup.second")
    assert finder not in sys.meta_path and not answers


def test_threads_that_import_different_targets_at_once(startup, package):
    names = [f"part{i}" for i in range(8)]
    package(**{name: "import time\ntime.sleep(0.02)\nCOMPLETE = 1" for name in names})
    calls = Calls()
    wait_for(startup, calls, *names)
    start = threading.Barrier(len(names))
    errors = []

    def load(name):
        start.wait()
        try:
            importlib.import_module(f"madeup.{name}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert calls.count == 1


# install, uninstall, switch_on -------------------------------------------------------------------------------------


@pytest.fixture
def patching(monkeypatch):
    """Stands in for transformers_apt.engine.patching."""
    import transformers_apt.engine

    fake = types.ModuleType("transformers_apt.engine.patching")
    fake.applied_times = 0
    fake.recorded = []
    fake.error = None

    def apply():
        if fake.error is not None:
            raise fake.error
        fake.applied_times += 1

    fake.apply = apply
    fake.record_failure = fake.recorded.append
    monkeypatch.setitem(sys.modules, "transformers_apt.engine.patching", fake)
    monkeypatch.setattr(transformers_apt.engine, "patching", fake, raising=False)
    return fake


@pytest.fixture
def restored_meta_path():
    finders = list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in finders if type(finder).__name__ != "PostImportFinder"]
    yield
    sys.meta_path[:] = finders


def waiting(startup):
    return [finder for finder in sys.meta_path if isinstance(finder, startup.PostImportFinder)]


def test_install_waits_once_and_uninstall_takes_it_back(startup, restored_meta_path, monkeypatch):
    monkeypatch.delenv(startup.SWITCH, raising=False)
    monkeypatch.setattr(startup, "TARGETS", {"madeup.never"})
    before = list(sys.meta_path)
    startup.install()
    startup.install()
    assert len(waiting(startup)) == 1 and sys.meta_path[1:] == before
    assert startup.is_waiting()
    startup.uninstall()
    assert sys.meta_path == before


@pytest.mark.parametrize("word", ["0", "off", "OFF", "false", " False ", "no"])
def test_words_that_switch_off(startup, restored_meta_path, monkeypatch, patching, word):
    monkeypatch.setenv(startup.SWITCH, word)
    startup.install()
    assert not waiting(startup)
    assert startup.switch_on() is True  # nothing left to do
    assert patching.applied_times == 0


@pytest.mark.parametrize("word", ["", "1", "on", "true", "yes", "anything"])
def test_words_that_do_not(startup, restored_meta_path, monkeypatch, word):
    monkeypatch.setenv(startup.SWITCH, word)
    monkeypatch.setattr(startup, "TARGETS", {"madeup.never"})
    startup.install()
    assert len(waiting(startup)) == 1


def test_install_after_the_target_was_imported(startup, package, restored_meta_path, monkeypatch, patching):
    monkeypatch.delenv(startup.SWITCH, raising=False)
    monkeypatch.setattr(startup, "TARGETS", {"madeup.target"})
    package(target="from fresh_use import now\nnow()\nCOMPLETE = 1")
    use = types.ModuleType("fresh_use")
    use.now = startup.install  # too early: the target is being imported
    monkeypatch.setitem(sys.modules, "fresh_use", use)
    importlib.import_module("madeup.target")
    assert patching.applied_times == 0
    startup.uninstall()
    startup.install()
    assert patching.applied_times == 1
    assert not waiting(startup)


def test_switch_on_reports_any_error_once_and_records_it(startup, patching, monkeypatch):
    monkeypatch.delenv(startup.SWITCH, raising=False)
    patching.error = ZeroDivisionError("the tower is gone")
    with pytest.warns(RuntimeWarning) as caught:
        assert startup.switch_on() is True
    assert len(caught) == 1
    for words in ("ZeroDivisionError: the tower is gone", "stays off", f"{startup.SWITCH}=0"):
        assert words in str(caught[0].message)
    assert patching.recorded == [patching.error]


def test_switch_on_survives_warnings_as_errors(startup, patching, monkeypatch, capsys):
    monkeypatch.delenv(startup.SWITCH, raising=False)
    patching.error = RuntimeError("no")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert startup.switch_on() is True
    assert "RuntimeError: no" in capsys.readouterr().err


def test_switch_on_survives_a_broken_patching_module(startup, patching, monkeypatch):
    import transformers_apt

    monkeypatch.delenv(startup.SWITCH, raising=False)
    monkeypatch.delattr(transformers_apt.engine, "patching")
    monkeypatch.setitem(sys.modules, "transformers_apt.engine.patching", None)  # its import fails
    with pytest.warns(RuntimeWarning, match=r"ModuleNotFoundError: import of transformers_apt\.engine\.patching"):
        assert startup.switch_on() is True


def test_an_import_deadlock_means_later(startup, patching, monkeypatch):
    monkeypatch.delenv(startup.SWITCH, raising=False)
    deadlock = type("_DeadlockError", (RuntimeError,), {})
    wrapped = ImportError("could not import")
    wrapped.__cause__ = deadlock("two threads")
    patching.error = wrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert startup.switch_on() is False
    assert not patching.recorded


def test_the_package_exports_lazily(patching):
    package = fresh_copy(SOURCE / "__init__.py")
    package.__name__ = "transformers_apt"
    assert package.apply is patching.apply
    assert {"apply", "revert", "applied", "status", "IncompatibleTransformersError"} <= set(dir(package))
    with pytest.raises(AttributeError, match=r"no attribute 'aply'.*apply"):
        _ = package.aply
