"""`transformers-apt status`."""

from __future__ import annotations

import os

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transformers_apt.cli.progress import progress
from transformers_apt.models.families import NAMES


def status() -> None:
    """Is the patch on, for which versions, and if not, why? Exit code 1 when it is off."""
    from transformers_apt.engine import patching, startup

    if startup.is_waiting() and not startup.is_switched_off():  # else it is off, or has come on, already
        with progress() as step:
            step("importing transformers, to see whether the patch fits it")
            try:
                # what any program does that uses one of the families, and what the start-up hook waits for
                from transformers.models.qwen2_vl import modeling_qwen2_vl  # noqa: F401
            except ImportError as error:
                patching.record_failure(error)
    found = patching.status()
    reason = found.reason
    if not found.active and reason is None:
        switched_off = f"the environment variable {startup.SWITCH}={os.environ.get(startup.SWITCH)} switches it off"
        not_hooked = "the start-up hook is not installed in this environment; call transformers_apt.apply()"
        reason = switched_off if startup.is_switched_off() else not_hooked
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("adaptive patches", "[green]on[/green]" if found.active else "[red]off[/red]")
    if not found.active:
        table.add_row("because", reason)
    table.add_row("transformers-apt", found.package_version)
    table.add_row("transformers", f"{found.transformers_version or 'not installed'} (supported: {found.supported})")
    if found.active:
        from transformers_apt.models.settings import DEFAULTS, OFF

        for family, why_not in found.families.items():
            default = DEFAULTS["patch_selection_method"] if family == patching.BASE else OFF
            said = f"on; without a setting '{default}'" if why_not is None else f"[red]off[/red]: {escape(why_not)}"
            table.add_row(NAMES[family], said)
    Console().print(table)
    raise typer.Exit(0 if found.active else 1)
