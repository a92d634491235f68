"""What may come in the page's fields; anything else is refused in a sentence, and not by a traceback in the log.

The page's own controls cannot send it, but a program can.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from loguru import logger

from transformers_apt.app.numbers import is_number
from transformers_apt.app.requests import shown

LONGEST_PATH = 4096
"""Characters; longer ones no file system opens."""


def guard_fields(page: Any) -> None:
    """Let the page check every value before gradio does.

    Overridden on the object, whose method gradio calls for each event, because it replaces its components by new ones
    during a session.
    """
    upstream = page.preprocess_data

    async def preprocess_data(block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        if len(inputs) != len(block_fn.inputs):
            raise refusal(f"{len(inputs)} values came: expected {len(block_fn.inputs)}, {_names(block_fn.inputs)}.")
        for block, value in zip(block_fn.inputs, inputs, strict=True):
            wrong = problem(block, value)
            if wrong:
                raise refusal(f"{_label(block)}: {wrong}.")
        try:
            return await upstream(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            raise refusal(str(error.message)) from error
        except Exception as error:
            logger.warning(f"the web page could not read what was sent: {shown(str(error), 200)}")
            raise refusal("That cannot be used here; reload the page, upload the photo, and try again.") from error

    page.preprocess_data = preprocess_data


def refusal(sentence: str) -> gr.Error:
    """What gradio shows to whoever asked, and nobody else."""
    return gr.Error(sentence, print_exception=False)


def problem(block: Any, value: Any) -> str:
    """What is wrong with a field's value, or nothing."""
    if isinstance(block, gr.Image):
        return _file_problem(value)
    if isinstance(block, gr.Dropdown | gr.Radio):
        choices = [choice for _, choice in block.choices]
        if not isinstance(value, str) or value not in choices:
            return f"{shown(value)} is not in the list of choices: {', '.join(map(str, choices))}"
    elif isinstance(block, gr.Slider):
        if not is_number(value):
            return f"{shown(value)} is no number: expected {block.minimum:g} to {block.maximum:g}"
        if value > block.maximum:
            return f"{shown(value)} is greater than maximum {block.maximum:g}"
        if value < block.minimum:
            return f"{shown(value)} is less than minimum {block.minimum:g}"
    elif isinstance(block, gr.Textbox):
        if not isinstance(value, str):
            return f"{shown(value)} is no text: expected a question in plain words"
    elif isinstance(block, gr.Dataset):
        most = len(block.samples or []) - 1
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            return f"{shown(value)} is no example: expected 0 to {most}"
    return ""


def _file_problem(value: Any) -> str:
    """A photo comes as gradio's description of an uploaded file."""
    expected = 'expected {"path": …} as the upload returned it, with "meta": {"_type": "gradio.FileData"}'
    if value is None:
        return ""
    if not isinstance(value, dict) or not isinstance(value.get("meta", {}), dict):
        return f"{shown(value)} is no uploaded file: {expected}"
    path = value.get("path")
    if path is not None and (not isinstance(path, str) or "\0" in path or len(path) > LONGEST_PATH):
        return f"path={shown(path)} is no uploaded file: {expected}"
    try:
        gr.Image.data_model.model_validate(value, context={"validate_meta": True})
    except ValueError:
        return f"{shown(value)} is no uploaded file: {expected}"
    return ""


def _label(block: Any) -> str:
    return str(getattr(block, "label", None) or type(block).__name__)


def _names(blocks: list[Any]) -> str:
    return ", ".join(map(_label, blocks)) or "none"
