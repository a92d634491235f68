"""Makes the environment of `make test-vllm` importable. Run by its own Python, once, and on no other environment.

The CPU build of vLLM pins a torch for CPUs, and the index's torchvision, torchaudio and torchcodec beside it are built
for GPUs: their compiled parts do not load. torchvision works without them but for one file, which describes operators
that are not there and so makes `import torchvision` fail; nothing here detects boxes, so the descriptions are skipped.
The other two cannot do without, and are taken out: transformers asks for them whenever they are installed.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

UNUSABLE = ("torchaudio", "torchcodec")
DESCRIBES = "@torch.library.register_fake("
ONLY_WHERE_COMPILED = "@(torch.library.register_fake if torchvision.extension._has_ops() else lambda _: lambda f: f)("


def repair() -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNUSABLE], check=True)
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("torchvision is not installed here: expected the one that the CPU build of vLLM asks for")
    file = Path(spec.submodule_search_locations[0]) / "_meta_registrations.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(DESCRIBES, ONLY_WHERE_COMPILED), encoding="utf-8")
    subprocess.run([sys.executable, "-c", "import torchvision, transformers, vllm"], check=True)


if __name__ == "__main__":
    if sys.prefix == sys.base_prefix:
        raise SystemExit(f"{sys.prefix} is no virtual environment: expected the one of make test-vllm")
    repair()
