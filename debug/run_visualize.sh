#!/usr/bin/env bash
# ./debug/run_visualize.sh photo.jpg [options]: the visualiser, with the checkout's own Python where there is one.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[ -x "$(command -v "$python")" ] || python=python3
exec "$python" "$here/visualize_patches.py" "$@"
