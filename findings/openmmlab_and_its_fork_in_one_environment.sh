#!/usr/bin/env bash
# mmengine 0.10.7 and its fork onedl-mmengine 0.10.12: pip installs the second beside the first, as it
# does for an environment that has one when a package is added that asks for the other. mmcv, mmdet and
# mmsegmentation have such forks as well.
#
# Expected: pip refuses, or "pip check" does; removing one gives back the other.
# Seen: both fill the folder mmengine/. Neither names the other in its metadata, so that pip sees no
# conflict: the second is written over the first, "pip check" finds nothing, and pip reports two
# versions of one module. After "pip uninstall" of the fork, mmengine 0.10.7 is still reported as
# installed, and its module is gone.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   both: exit 0, No broken requirements found.
#   pip: mmengine 0.10.7, onedl-mmengine 0.10.12
#   mmengine/__init__.py is there: True, files of mmengine 0.10.7 that changed: 41
#   without the fork: No broken requirements found.
#   pip: mmengine 0.10.7
#   mmengine/__init__.py is there: False
# Fails if these releases are treated otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet mmengine==0.10.7 "setuptools<81"

cat >"$folder/report.py" <<'PYTHON'
import base64
import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

found = {}
for name in ("mmengine", "onedl-mmengine"):
    try:
        found[name] = distribution(name)
    except PackageNotFoundError:
        pass
print("pip:", ", ".join(f"{name} {dist.version}" for name, dist in found.items()))
spec = find_spec("mmengine")
there = spec is not None and spec.origin is not None
line = f"mmengine/__init__.py is there: {there}"
if there:
    changed = 0
    for file in found["mmengine"].files:
        if file.suffix == ".py" and file.hash is not None and file.locate().is_file():
            digest = hashlib.sha256(file.read_binary()).digest()
            value = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            changed += value != file.hash.value
    line += f", files of mmengine 0.10.7 that changed: {changed}"
    assert changed > 0, "changed"
print(line)
assert there == (len(found) == 2), "changed"
PYTHON

"$python" -m pip install --quiet onedl-mmengine==0.10.12
echo "both: exit $?, $("$python" -m pip check)"
"$python" "$folder/report.py"
"$python" -m pip uninstall --quiet -y onedl-mmengine
echo "without the fork: $("$python" -m pip check)"
"$python" "$folder/report.py"
