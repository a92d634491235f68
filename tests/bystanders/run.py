"""Runs one case, as a process of its own, and writes what it saw: `{"active": …, "seen": …}` or `"error"`.

python -m tests.bystanders.run servers vllm seen.json
"""

import importlib
import json
import sys


def main(module, case, output):
    try:
        found = {"seen": getattr(importlib.import_module(f"tests.bystanders.{module}"), case)()}
    except Exception as error:
        import traceback

        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    import transformers_apt

    found["active"] = transformers_apt.status().active
    with open(output, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)  # the two processes that are compared run side by side
    main(*sys.argv[1:])
