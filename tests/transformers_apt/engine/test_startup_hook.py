"""The start-up hook in real, fresh Python processes, with the real transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.transformers_apt.engine.fresh_python import environment, joined, run, said

pytestmark = pytest.mark.usefixtures("installed")

SOURCE = Path(__file__).parents[3] / "src"
QWEN2_VL = "transformers.models.qwen2_vl"

# What a process says about itself at its end. The signature is the proof; status() is what the package says about it.
REPORT = f"""
    import inspect, sys
    from {QWEN2_VL}.modeling_qwen2_vl import Qwen2VLForConditionalGeneration as Model
    import transformers_apt
    print("patched:", "image_patch_layout" in inspect.signature(Model.forward).parameters)
    print("active:", transformers_apt.status().active)
    print("reason:", transformers_apt.status().reason)
    print("waiting:", any(type(finder).__name__ == "PostImportFinder" for finder in sys.meta_path))
"""
ON = {"patched": "True", "active": "True", "reason": "None", "waiting": "False"}
OFF = {"patched": "False", "active": "False", "reason": "None", "waiting": "False"}

# A new Python that has imported what takes seconds (but no Qwen2-VL) and then forks once for each request.
NURSERY = """
    import json, os, sys, tempfile
    import torch, torchvision, transformers, transformers.modeling_utils, transformers.processing_utils
    import transformers.image_processing_backends, transformers.generation.utils
    assert not [name for name in sys.modules if name.endswith("_qwen2_vl")]  # 5.18 has aliases, "…_fast"
    for request in sys.stdin:
        files = [tempfile.TemporaryFile() for _ in range(2)]
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            os.dup2(files[0].fileno(), 1)
            os.dup2(files[1].fileno(), 2)
            code = 1
            try:
                exec(compile(json.loads(request), "<string>", "exec"), {"__name__": "__main__"})
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        answer = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
        for file in files:
            file.seek(0)
            answer.append(file.read().decode())
            file.close()
        print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def fork():
    """Like `run`, in a process that has torch and transformers ready: a second instead of five."""
    nursery = subprocess.Popen(
        [sys.executable, "-c", joined(NURSERY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )

    def run_in_a_fork(*parts: str) -> subprocess.CompletedProcess[str]:
        nursery.stdin.write(json.dumps(joined(*parts)) + "\n")
        nursery.stdin.flush()
        code, out, err = json.loads(nursery.stdout.readline())
        assert code == 0, err
        return subprocess.CompletedProcess([], code, out, err)

    yield run_in_a_fork
    nursery.stdin.close()
    nursery.wait(timeout=60)


# On ----------------------------------------------------------------------------------------------------------------


def test_on_by_a_plain_import():
    done = run("from transformers import Qwen2VLForConditionalGeneration", REPORT)
    assert said(done) == ON
    assert done.stderr == ""


@pytest.mark.parametrize(
    "first_import",
    [
        "from transformers import Qwen2VLImageProcessor",
        "from transformers import Qwen2VLImageProcessorPil",
        "from transformers import AutoProcessor, Qwen2VLProcessor",
        "from transformers.models.colqwen2 import modeling_colqwen2, processing_colqwen2",
        "import transformers_apt.models.processing_utils",
        "import transformers_apt.models.qwen2_vl.image_processing_pil_qwen2_vl",
        "from transformers_apt import patching",
        "import transformers_apt; transformers_apt.apply()",
        f"import {QWEN2_VL}.processing_qwen2_vl; import transformers_apt; transformers_apt.apply()",
    ],
)
def test_on_whatever_comes_first(fork, first_import):
    done = fork(first_import, REPORT)
    assert said(done) == ON
    assert "Warning" not in done.stderr


def test_all_of_the_patch_is_on(fork):
    count = "import transformers_apt; print('targets:', len(transformers_apt.status().targets))"
    through_hook = fork("from transformers import Qwen2VLProcessor", count)
    through_overlay = fork("import transformers_apt.models.processing_utils", count)
    by_hand = fork("import transformers_apt; transformers_apt.apply()", count)
    assert said(through_hook) == said(through_overlay) == said(by_hand)
    assert int(said(by_hand)["targets"]) > 5


def test_leaves_no_trace_on_the_modules(fork):
    done = fork(
        f"""
        import importlib, importlib.machinery
        for name in ("image_processing_qwen2_vl", "image_processing_pil_qwen2_vl", "processing_qwen2_vl",
                     "modeling_qwen2_vl"):
            module = importlib.import_module("{QWEN2_VL}." + name)
            loader = module.__spec__.loader
            print(name + ":", type(loader) is importlib.machinery.SourceFileLoader, "exec_module" in vars(loader),
                  loader is module.__loader__, "class Qwen2VL" in loader.get_source(module.__name__))
        """
    )
    assert list(said(done).values()) == ["True False True True"] * 4


def test_threads_that_import_at_once(fork):
    done = fork(
        f"""
        import importlib, threading, transformers, transformers_apt
        names = ["image_processing_qwen2_vl", "image_processing_pil_qwen2_vl", "processing_qwen2_vl",
                 "modeling_qwen2_vl"]
        works = [lambda name=name: importlib.import_module("{QWEN2_VL}." + name) for name in names]
        works.append(lambda: transformers_apt.apply())
        errors, start = [], threading.Barrier(len(works))
        def load(work):
            start.wait()
            try:
                work()
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=load, args=(work,), daemon=True) for work in works]
        for thread in threads: thread.start()
        for thread in threads: thread.join(120)
        assert not any(thread.is_alive() for thread in threads), "deadlock"
        assert not errors, errors
        """,
        REPORT,
    )
    assert said(done) == ON


def test_transformers_imported_before_the_hook():
    done = run(
        """
        import os
        from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor
        del os.environ["TRANSFORMERS_APT"]
        from transformers_apt.engine import startup
        startup.install()
        startup.install()
        """,
        REPORT,
        TRANSFORMERS_APT="0",
    )
    assert said(done) == ON


# Off ---------------------------------------------------------------------------------------------------------------


def test_off_by_the_environment():
    assert said(run(REPORT, TRANSFORMERS_APT="0")) == OFF


def test_off_by_a_script_before_it_imports_transformers(fork):
    assert said(fork("import os; os.environ['TRANSFORMERS_APT'] = 'off'", REPORT)) == OFF


def test_applied_for_a_while(fork):
    block = "\nwith transformers_apt.applied(): assert transformers_apt.status().active"
    off = "import transformers_apt; transformers_apt.revert()"
    assert said(fork(off + block, REPORT)) == OFF
    assert said(fork("import transformers_apt" + block, REPORT)) == ON  # about to come on counts as on


def test_reverted_before_transformers_is_imported(fork):
    assert said(fork("import transformers_apt; transformers_apt.revert()", REPORT)) == OFF


def test_apply_by_hand_with_the_hook_off_and_revert(fork):
    done = fork(
        f"""
        import os
        os.environ["TRANSFORMERS_APT"] = "0"
        from {QWEN2_VL}.modeling_qwen2_vl import Qwen2VLForConditionalGeneration as Model
        import transformers_apt
        before = dict(vars(Model))
        transformers_apt.apply()
        assert dict(vars(Model)) != before
        transformers_apt.revert()
        assert dict(vars(Model)) == before
        """,
        REPORT,
    )
    assert said(done) == OFF


@pytest.mark.parametrize("word", ["0", "off", "FALSE", "no"])
def test_nothing_waits_when_off(word):
    code = "import sys; print('waiting:', any(type(f).__name__ == 'PostImportFinder' for f in sys.meta_path))"
    assert said(run(code, TRANSFORMERS_APT=word)) == {"waiting": "False"}
    assert said(run(code)) == {"waiting": "True"}


# Incompatible ------------------------------------------------------------------------------------------------------

OLD_RELEASE = """
    import importlib.metadata, transformers
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "5.17.0" if name == "transformers" else version(name)
"""
# Upstream's source is changed while it is loaded, so that a method the patch needs has another name.
RENAMED_METHOD = f"""
    import importlib.machinery
    ordinary = importlib.machinery.SourceFileLoader.get_data
    def renamed(self, path):
        data = ordinary(self, path)
        if "modeling_qwen2_vl" in path and "transformers_apt" not in path:
            if path.endswith(".pyc"):
                raise OSError("compile the changed source instead")
            data = data.replace(b"def get_image_features(", b"def get_picture_features(")
        return data
    importlib.machinery.SourceFileLoader.get_data = renamed
    importlib.machinery.SourceFileLoader._cache_bytecode = lambda *args, **kwargs: None
    import {QWEN2_VL}.modeling_qwen2_vl as upstream
    assert not hasattr(upstream.Qwen2VLModel, "get_image_features")
"""
UNTOUCHED = f"""
    import importlib
    for name in ("image_processing_qwen2_vl", "image_processing_pil_qwen2_vl", "processing_qwen2_vl",
                 "modeling_qwen2_vl"):
        module = importlib.import_module("{QWEN2_VL}." + name)
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        for cls in [cls for cls in classes if cls.__module__ == module.__name__]:
            for member in vars(cls).values():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                code = getattr(function, "__code__", None)
                assert code is None or "transformers_apt" not in code.co_filename, (cls, member)
"""


@pytest.mark.parametrize(
    ("shim", "reason"), [(OLD_RELEASE, "transformers 5.17.0 is installed"), (RENAMED_METHOD, "get_image_features")]
)
def test_incompatible_transformers_is_left_alone_with_one_warning(fork, shim, reason):
    done = fork("import warnings; warnings.simplefilter('always')", shim, UNTOUCHED, REPORT)
    answers = said(done)
    assert "IncompatibleTransformersError" in answers["reason"] and reason in answers["reason"]
    assert answers == OFF | {"reason": answers["reason"]}
    warnings = [line for line in done.stderr.splitlines() if "RuntimeWarning: transformers-apt" in line]
    assert len(warnings) == 1
    assert reason in warnings[0] and "TRANSFORMERS_APT=0" in warnings[0]
    assert "Traceback" not in done.stderr


def test_incompatible_and_silenced():
    done = run(OLD_RELEASE, REPORT, TRANSFORMERS_APT="0")
    assert said(done) == OFF
    assert "transformers-apt" not in done.stderr


def test_incompatible_and_warnings_are_errors(fork):
    done = fork(
        "import transformers, warnings; warnings.simplefilter('error', RuntimeWarning)",
        OLD_RELEASE,
        "from transformers import Qwen2VLProcessor; print('imported: yes')",
    )
    assert said(done) == {"imported": "yes"}
    assert "transformers 5.17.0 is installed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "missing", ["transformers_apt.engine.patching", "transformers_apt.engine.overlay", "apt_code"]
)
def test_a_broken_installation_of_ours_does_not_break_transformers(fork, missing):
    done = fork(
        f"import sys; sys.modules['{missing}'] = None",
        "from transformers import Qwen2VLProcessor; print('imported: yes')",
    )
    assert said(done) == {"imported": "yes"}
    assert done.stderr.count("RuntimeWarning: transformers-apt") == 1 and missing in done.stderr


def test_upstreams_own_import_error_passes_through(fork):
    done = fork(
        f"""
        import sys, transformers
        sys.modules["{QWEN2_VL}.configuration_qwen2_vl"] = None
        try:
            import {QWEN2_VL}.modeling_qwen2_vl
        except ImportError as error:
            print("error:", type(error).__name__, error.name)
        """
    )
    assert said(done) == {"error": f"ModuleNotFoundError {QWEN2_VL}.configuration_qwen2_vl"}
    assert done.stderr == ""


def test_the_package_gone_but_the_file_left_behind():
    """A moved checkout must not make every Python of the environment print a traceback."""
    done = run((SOURCE / "transformers_apt.pth").read_text(), flags=("-S", "-I"))
    assert done.stdout == done.stderr == ""
