#!/usr/bin/env bash
# mmengine 0.10.7: two Runners that one process builds within the same second, for two models and two
# work directories, as tests and hyperparameter searches do.
#
# Expected: each has its log file in its own work directory, and its own message hub.
# Seen: logger and message hub are found again by a name that ends in the second of the day. The
# second Runner makes no log file; its lines go into the first one's, and what it puts into its message
# hub (losses, learning rates) lands among the first one's, with no warning.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   mmengine 0.10.7
#   log files: one 1, two 0
#   loss that the first run's message hub has after the second run said 2.0: 2.0
# Fails if 0.10.7 behaves otherwise. Downloads torch (about 1 GB, or 200 MB without CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet mmengine==0.10.7 torch==2.14.1 numpy==2.4.6 \
  "opencv-python-headless<5" "setuptools<81"
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import mmengine.runner.runner as module
from mmengine.model import BaseModel

print("mmengine", version("mmengine"))
# Both are built in the same second, however slow the machine is.
now = time.time()
module.time = SimpleNamespace(
    time=lambda: now, localtime=time.localtime, strftime=time.strftime
)


class Model(BaseModel):
    def forward(self, inputs, data_samples=None, mode="tensor"):
        return inputs


logging.disable(logging.CRITICAL)
one = module.Runner(Model(), work_dir="one", experiment_name="search")
two = module.Runner(Model(), work_dir="two", experiment_name="search")
logging.disable(logging.NOTSET)
logs = {name: len(list(Path(name).glob("*/*.log"))) for name in ("one", "two")}
print(f"log files: one {logs['one']}, two {logs['two']}")
one.message_hub.update_scalar("train/loss", 1.0)
two.message_hub.update_scalar("train/loss", 2.0)
found = one.message_hub.get_scalar("train/loss").current()
print("loss that the first run's message hub has after the second run said 2.0:", found)
assert logs == {"one": 1, "two": 0} and found == 2.0, "changed"
PYTHON
