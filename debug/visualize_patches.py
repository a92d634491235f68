#!/usr/bin/env python
"""Draw what a Qwen-VL processor makes of an image: `python debug/visualize_patches.py photo.jpg`.

The same as `transformers-apt visualize`, option for option; `--help` lists them.
"""

import sys

try:
    from typer.main import get_command

    from transformers_apt.cli.main import app
except ModuleNotFoundError as error:
    sys.exit(f"{error}: {sys.executable} lacks transformers-apt; run `make venv`, then use debug/run_visualize.sh")


def main() -> None:
    """Run the command under this script's name."""
    visualize = get_command(app).commands["visualize"]  # type: ignore[attr-defined]
    sys.exit(visualize.main(prog_name="visualize_patches.py"))


if __name__ == "__main__":
    main()
