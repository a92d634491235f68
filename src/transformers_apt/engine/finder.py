"""Waits until one of the modules that the patch changes has been imported.

Imported at every start of Python, by `startup.py`: see there for the rules that follow from it.
"""

import _thread
import sys

TYPE_CHECKING = False  # type checkers read this as True; importing typing would cost more than the whole hook
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

FAMILIES = {
    "qwen2_vl": (
        "image_processing_qwen2_vl",
        "image_processing_pil_qwen2_vl",
        "processing_qwen2_vl",
        "modeling_qwen2_vl",
    ),
    "qwen2_5_vl": ("processing_qwen2_5_vl", "modeling_qwen2_5_vl"),
    "qwen3_vl": ("processing_qwen3_vl", "modeling_qwen3_vl"),
    "qwen3_vl_moe": ("modeling_qwen3_vl_moe",),
    "qwen3_5": ("modeling_qwen3_5",),
    "qwen3_5_moe": ("modeling_qwen3_5_moe",),
}
"""The modules that are changed, by family: `transformers.models.<family>.<module>`. Ours mirror their paths."""

TARGETS = frozenset(f"transformers.models.{family}.{module}" for family in FAMILIES for module in FAMILIES[family])


def uninstall() -> None:
    """Stop waiting: later imports of transformers stay as upstream made them. What is already patched stays so."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, PostImportFinder)]


def is_waiting() -> bool:
    return any(isinstance(finder, PostImportFinder) for finder in sys.meta_path)


class PostImportFinder:
    """Calls `callback` when one of `targets` has been imported, then leaves `sys.meta_path`.

    It waits for the outermost import to finish, because targets import each other, and the modules whose names start
    with `together_with` import targets: until the last one under way is complete, `callback` would see half-executed
    modules. The callback returns whether it is done; if not, the next import gives it another try.
    """

    def __init__(
        self, targets: "Collection[str]", callback: "Callable[[], bool]", together_with: "str | None" = None
    ) -> None:
        self.targets = targets
        self.callback = callback
        self.together_with = together_with
        self._lock = _thread.allocate_lock()
        self._pending = False  # a target is there, and the callback has not dealt with it
        self._busy = False  # the callback runs, or is done
        self._executing = 0  # watched modules being executed now, in all threads
        self._looking: set[tuple[int, str]] = set()

    def watches(self, fullname: str) -> bool:
        return fullname in self.targets or (self.together_with is not None and fullname.startswith(self.together_with))

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if not self.watches(fullname):
            return None
        # A finder further down may ask the whole of sys.meta_path again, and so come back here.
        question = (_thread.get_ident(), fullname)
        if question in self._looking:
            return None
        self._looking.add(question)
        try:
            spec = self._ask_the_others(fullname, path, target)
        finally:
            self._looking.discard(question)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._watch(spec)
        return spec

    def _ask_the_others(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        finders = list(sys.meta_path)
        if self in finders:  # those before us were asked already and did not know
            finders = finders[finders.index(self) + 1 :]
        for finder in finders:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None

    def _watch(self, spec: "ModuleSpec") -> None:
        """Wrap `exec_module` of this one loader object; its class and all its other methods stay what they are."""
        loader: Any = spec.loader
        if isinstance(getattr(loader, "exec_module", None), _WatchedExec):
            return  # one loader object may serve several modules (zipimport), or be asked for twice
        watched = _WatchedExec(self, loader)
        try:
            if isinstance(loader, type):  # an attribute set on a class would reach every module it loads
                raise TypeError
            loader.exec_module = watched
        except (AttributeError, TypeError):
            spec.loader = _LoaderProxy(loader, watched)  # type: ignore[assignment]

    def begin(self) -> None:
        with self._lock:
            self._executing += 1

    def end(self, fullname: str, succeeded: bool) -> None:
        with self._lock:
            self._executing -= 1
            self._pending = self._pending or (succeeded and fullname in self.targets)
            if not succeeded or not self._pending or self._executing or self._busy:
                return
            self._busy = True
        self._fire()

    def fire_if_imported(self) -> None:
        modules = [sys.modules[name] for name in self.targets if name in sys.modules]
        if not modules or any(
            getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules
        ):
            return
        with self._lock:
            if self._executing or self._busy:
                return
            self._busy = True
        self._fire()

    def _fire(self) -> None:
        # Outside the lock: the callback imports the other targets, which come back to begin() and end().
        done = False
        try:
            done = self.callback()
        finally:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            if not done:
                sys.meta_path.insert(0, self)  # the callback may have taken it off
                self._busy = False


class _WatchedExec:
    """`exec_module` of one loader, which tells the finder when a watched module begins and ends."""

    def __init__(self, finder: PostImportFinder, loader: "Any") -> None:
        self.finder = finder
        self.loader = loader
        self.original = loader.exec_module

    def __call__(self, module: "ModuleType") -> None:
        if not self.finder.watches(module.__name__):
            self.original(module)
            return
        self.finder.begin()
        succeeded = False
        try:
            self.original(module)  # what upstream raises passes through unchanged
            succeeded = True
        finally:
            if getattr(self.loader, "__dict__", {}).get("exec_module") is self:
                del self.loader.exec_module
            self.finder.end(module.__name__, succeeded)


class _LoaderProxy:
    """Stands in for a loader that takes no attributes of its own (a class, or one with slots)."""

    def __init__(self, loader: "Any", exec_module: _WatchedExec) -> None:
        self._loader = loader
        self.exec_module = exec_module

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)
