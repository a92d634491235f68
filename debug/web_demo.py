#!/usr/bin/env python
"""The web page: tilings, tokens and answers of two settings side by side, `python debug/web_demo.py`.

The same as `transformers-apt app`, option for option; `--help` lists them.
"""

import sys

try:
    from typer.main import get_command

    from transformers_apt.cli.main import app
except ModuleNotFoundError as error:
    sys.exit(f"{error}: {sys.executable} lacks transformers-apt; run `make venv`, then .venv/bin/python {sys.argv[0]}")


def main() -> None:
    """Run the command under this script's name."""
    command = get_command(app).commands["app"]  # type: ignore[attr-defined]
    sys.exit(command.main(prog_name="web_demo.py"))


if __name__ == "__main__":
    main()
