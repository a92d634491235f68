"""The work behind `transformers-apt visualize` and `debug/visualize_patches.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

import transformers_apt
from transformers_apt.engine.patching import BASE
from transformers_apt.models.families import PUBLISHED, megapixels
from transformers_apt.models.settings import OFF
from transformers_apt.visualizer.files import SUMMARY, TableError, visualize_folder, visualize_image
from transformers_apt.visualizer.names import folder_name, longest_name, readable
from transformers_apt.visualizer.view import describe_limit, ignored_settings, load_processor, pick_device

EXPECTED = (
    OSError,
    ValueError,
    TypeError,
    ModuleNotFoundError,
    HFValidationError,
    transformers_apt.IncompatibleTransformersError,
)
"""What bad input raises: worth one line, not a traceback."""


def run(
    source: Path,
    output: Path,
    model: str | None,
    family: str | None,
    device: str,
    given: dict[str, Any],
    complain: Callable[[str, object], None],
) -> list[str]:
    """Draw one image or every image of a folder, and say so.

    Args:
        source: image file or folder.
        output: where the images' folders go.
        model: whose image processor; `None` for upstream's class.
        family: without a model, whose published patch size and limits.
        device: `'auto'`, `'cpu'` or `'cuda'`.
        given: sizes and settings, `None` where not given.
        complain: takes a rich tag and a message; prints one line on stderr.

    Returns:
        What went wrong with a folder's images or its table, already printed.
    """
    # print and not typer.echo, which writes UTF-8 where the terminal says that it takes none
    where = pick_device(device)
    processor = load_processor(model, family, **given)
    limit = describe_limit(processor, model, family)
    notes = ignored_settings(processor.patch_selection_method, given)
    if processor.patch_selection_method == OFF and given.get("patch_selection_method") is None:
        notes.append("nothing is selected: 'off' is this image processor's setting; choose --patch-selection-method")
    if not source.is_dir():
        stats = visualize_image(source, output, processor, where, notes=notes, limit=limit)
        for note in [*stats["notes"], *_smaller_than_released(stats, model or family)]:
            complain("[yellow]note:[/yellow]", note)
        print(describe(stats))
        print(readable(f"-> {output / folder_name(source, longest=longest_name(output))}"))
        return []
    table_error: TableError | None = None
    try:
        found, errors = visualize_folder(source, output, processor, where, notes=notes, limit=limit)
    except TableError as caught:
        found, errors, table_error = caught.found, caught.errors, caught
    said = (note for stats in found for note in [*stats["notes"], *_smaller_than_released(stats, model or family)])
    for note in dict.fromkeys(said):
        complain("[yellow]note:[/yellow]", note)
    for error in errors:
        complain("[red]error:[/red]", error)
    for stats in found:
        print(describe(stats))
    failed = f", {len(errors)} could not be" if errors else ""
    if table_error is not None:
        complain("[red]error:[/red]", table_error)
        errors = [*errors, str(table_error)]
    print(readable(f"{len(found)} images drawn{failed} -> {output if table_error else output / SUMMARY}"))
    return errors


def _smaller_than_released(stats: dict[str, Any], named: str | None) -> list[str]:
    """What to say of an image that a released checkpoint would see larger."""
    original, most = stats["original_size"], stats["processor"]["max_pixels"]
    if named is not None or original["width"] * original["height"] <= most:
        return []
    return [
        f"resized to {megapixels(most)}, upstream's class default; released checkpoints allow "
        f"{megapixels(PUBLISHED[BASE].max_pixels)} or more: name yours with --model, or its family with --family"
    ]


def describe(stats: dict[str, Any]) -> str:
    """One image's `stats.json` in a line."""
    sides = ", ".join(f"{count} of {side} px" for side, count in stats["patches"]["by_px"].items())
    target = stats["retention"]["target"]
    aimed = "" if target is None else f", target {target:.1%}"
    dropped = f", {stats['dropped_cells']} cells left out" if stats["dropped_cells"] else ""
    return (
        f"{stats['image']}: {stats['original_size']['width']}×{stats['original_size']['height']} px, resized to "
        f"{stats['resized_size']['width']}×{stats['resized_size']['height']} ({stats['resize_limit']}); {sides}; "
        f"{stats['patches']['kept']} of {stats['patches']['full']} patches "
        f"({stats['retention']['actual']:.1%}{aimed}), "
        f"{stats['language_tokens']['kept']} of {stats['language_tokens']['full']} language tokens{dropped}"
    )
