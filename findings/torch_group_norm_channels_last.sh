#!/usr/bin/env bash
# torch 2.14.1 on a CPU: group norm in float32 of a map of 512 x 512 positions, in both memory formats.
#
# Expected: the memory format changes the speed, not the accuracy.
# Seen: with channels_last, the error is about 200 times as large. It grows with the number of
# positions, as if they were summed one after the other in float32. The VAE of a diffusion model
# has about 20 such layers, and channels_last is what is recommended for its convolutions.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64, AMD EPYC with AVX-512:
#   torch 2.14.1
#   64 x 64, default: mean error 2.0e-07
#   64 x 64, channels_last: mean error 1.1e-06
#   512 x 512, default: mean error 1.4e-07
#   512 x 512, channels_last: mean error 3.0e-05
# Fails if 2.14.1 behaves otherwise. Downloads torch (about 1 GB, or 200 MB without CUDA).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.nn.functional import group_norm

print("torch", torch.__version__.split("+")[0])
torch.manual_seed(0)
errors = {}
for edge in (64, 512):
    x = torch.randn(1, 8, edge, edge) + 3
    truth = group_norm(x.double(), 2)
    for name in ("default", "channels_last"):
        layout = torch.contiguous_format if name == "default" else torch.channels_last
        out = group_norm(x.to(memory_format=layout), 2)
        errors[edge, name] = (out - truth).abs().mean().item()
        print(f"{edge} x {edge}, {name}: mean error {errors[edge, name]:.1e}")
assert errors[512, "channels_last"] > 20 * errors[512, "default"], "changed"
assert errors[512, "channels_last"] > 3 * errors[64, "channels_last"], "changed"
PYTHON
