#!/usr/bin/env bash
# torch 2.14.1 on a CPU: `index_add_` of rows, with indices of 32 and of 64 bits.
#
# Expected: smaller indices are as fast, or faster, as they are half as much to read. Both are
# documented as valid.
# Seen: the same sums take 2 to 4 times as long with 32 bits. Only 64 bits take the fast algorithm.
# The gradient of deformable attention adds a million such rows per layer.
#
# Output seen on 2026-11-29, Python 3.11, Linux x86-64, AMD EPYC with AVX-512, one thread:
#   torch 2.14.1
#   equal sums: True
#   int32 takes at least 1.5 times as long as int64: True
# Fails if 2.14.1 behaves otherwise. Downloads torch (about 1 GB, or 200 MB without CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import time

import torch

print("torch", torch.__version__.split("+")[0])
torch.set_num_threads(1)
torch.manual_seed(0)
rows, channels = 20_000, 8
index = torch.randint(rows, (1_000_000,))
values = torch.randn(len(index), channels)


def add(places):
    return torch.zeros(rows, channels).index_add_(0, places, values)


def seconds(places):
    taken = []
    for _ in range(5):
        start = time.process_time()
        add(places)
        taken.append(time.process_time() - start)
    return min(taken)


equal = torch.allclose(add(index), add(index.int()), atol=1e-3)
slower = seconds(index.int()) > 1.5 * seconds(index)
print("equal sums:", equal)
print("int32 takes at least 1.5 times as long as int64:", slower)
assert equal and slower, "changed"
PYTHON
