"""`transformers-apt app`: the options, and nothing slow before they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from transformers_apt.cli.messages import CHECKPOINT, DEVICES, DTYPES, check_choice, check_model, fail


def app_command(
    model: Annotated[str | None, typer.Option(help=f"{CHECKPOINT}.", show_default="the embedded one")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the first free from 7860")
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")] = "auto",
    dtype: Annotated[str, typer.Option(help="'float32', 'bfloat16' or 'float16'.")] = "float32",
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file that may be uploaded.")] = 20,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Largest image that is decoded.")] = 50,
    max_resized_megapixels: Annotated[
        float, typer.Option(min=0.01, help="To what an image is resized at most, if the model allows as much.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut off.")] = 64,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
) -> None:
    """Serve the web page: two settings' tilings, tokens and answers side by side, for a photo of yours.

    It listens on this machine only; to reach it from another one, forward the port over SSH.
    """
    check_model(model)
    check_choice("--device", device, DEVICES)
    check_choice("--dtype", dtype, DTYPES)
    from transformers_apt.app import command as app_command
    from transformers_apt.app.handlers import Limits

    limits = Limits(upload_bytes=max_upload_mb * 1024**2, pixels=max_megapixels * 1_000_000)
    if max_resized_megapixels != 1.0:
        limits = replace(limits, resized_pixels=int(max_resized_megapixels * 1_000_000))
    try:
        app_command.run(model, device, dtype, port, limits, max_new_tokens, browser, print)
    except app_command.EXPECTED as error:
        raise fail(error) from error
