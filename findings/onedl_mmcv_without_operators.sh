#!/usr/bin/env bash
# onedl-mmcv 2.3.6, which is published as source only: installed with pip where torch is installed.
#
# Expected: its operators (mmcv.ops: nms, RoIAlign, deformable attention, ...) are compiled, or pip
# says that they are not. After "pip uninstall", "pip install --no-build-isolation" compiles them.
# Seen: pip builds it in an environment of its own, without torch. setup.py then leaves the operators
# out, and says so only in a log that pip doesn't show. "pip check" finds nothing, and "import
# mmcv.ops" fails ("No module named 'mmcv._ext'"), as does "import mmdet.models". What is more, pip
# keeps the wheel: with --no-build-isolation, it installs that one again, without a compiler being
# started. "--no-cache-dir" is needed as well.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   torch 2.14.1, onedl-mmcv 2.3.6
#   default: compiled operators False; No broken requirements found.
#   --no-build-isolation: compiled operators False; No broken requirements found.
# Fails if 2.3.6 is installed otherwise. Downloads torch (about 1 GB, or 200 MB without CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PIP_CACHE_DIR="$folder/cache"
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --no-cache-dir torch==2.14.1 "setuptools>=80,<81" wheel \
  "packaging>=24.2"

report() {
  "$python" - "$1" "$("$python" -m pip check)" <<'PYTHON'
import sys
from importlib.metadata import distribution

compiled = any(file.name.startswith("_ext.") for file in distribution("onedl-mmcv").files)
print(f"{sys.argv[1]}: compiled operators {compiled}; {sys.argv[2]}")
assert not compiled, "changed"
PYTHON
}

"$python" -m pip install --quiet onedl-mmcv==2.3.6
"$python" -c 'from importlib.metadata import version as v
print(f"torch {v('"'torch'"')}, onedl-mmcv {v('"'onedl-mmcv'"')}")'
report default
"$python" -m pip uninstall --quiet -y onedl-mmcv
timeout 120 "$python" -m pip install --quiet --no-build-isolation onedl-mmcv==2.3.6
report --no-build-isolation
