"""Installed means on: patch transformers when one of the modules that the patch changes has been imported.

`install` runs at every start of Python in the environment (through `transformers_apt.pth`, or `transformers_apt.start`
where Python knows PEP 829), also for programs that never touch transformers. Hence the rules of this file: import
nothing that is not loaded already, never raise, and leave no trace once the work is done.

    TRANSFORMERS_APT=0 python script.py      # stay off (also: off, false, no)
"""

import os
import sys

from transformers_apt.engine.finder import TARGETS, PostImportFinder, is_waiting
from transformers_apt.engine.finder import uninstall as uninstall

SWITCH = "TRANSFORMERS_APT"
_OFF_WORDS = frozenset({"0", "off", "false", "no"})


def install() -> None:
    """Wait for the first target module; do nothing when switched off or when already waiting."""
    if is_switched_off() or is_waiting():
        return
    finder = PostImportFinder(TARGETS, switch_on, together_with="transformers_apt.")
    sys.meta_path.insert(0, finder)
    finder.fire_if_imported()  # in a notebook, say, that imported transformers before it called this


def is_switched_off() -> bool:
    return os.environ.get(SWITCH, "").strip().lower() in _OFF_WORDS


def switch_on() -> bool:
    """Apply the patch, all or nothing. Returns False when another thread's import stands in the way for now."""
    if is_switched_off():  # asked again: a script may set the variable itself before it imports transformers
        return True
    try:
        from transformers_apt.engine import patching

        patching.apply()
    except Exception as error:
        if _is_import_deadlock(error):
            return False
        _report(error)
    return True


def _is_import_deadlock(error: "BaseException | None") -> bool:
    # Python raises this private class when two threads wait for each other's half-imported modules.
    while error is not None:
        if type(error).__name__ == "_DeadlockError":
            return True
        error = error.__cause__ or error.__context__
    return False


def _report(error: Exception) -> None:
    """Say once why the patch is off, and keep the reason for `status()`."""
    message = (
        f"transformers-apt is installed but stays off, and transformers works as if it were not there: "
        f"{type(error).__name__}: {error} "
        f"(`transformers-apt status` shows the versions; set {SWITCH}=0 to switch it off and silence this warning.)"
    )
    try:
        from transformers_apt.engine import patching

        patching.record_failure(error)
    except Exception:  # patching itself may be what cannot be imported; the warning below still says why
        pass
    try:
        import warnings

        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except Exception:  # under -W error a warning raises, and would make the import of transformers fail
        print(message, file=sys.stderr)
