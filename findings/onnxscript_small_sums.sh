#!/usr/bin/env bash
# onnxscript 0.7.2: torch.onnx.export of a division by `area + 1e-8`, with an area that may be 0.
#
# Expected: the graph computes what the model computes: 0 / (0 + 1e-8) = 0.
# Seen: the optimizer takes 1e-8 for 0, as its patterns match constants with an absolute tolerance of
# 1e-8, and removes the sum. The graph computes 0 / 0, which is not a number. Nothing is logged. The
# optimizer is on by default (`optimize=True`). A sum with 1e-6, or `clamp_min(1e-8)`, stays.
# Averages inside masks, cosine similarities and norms are often written with such a sum.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   torch 2.14.1, onnxscript 0.7.2, onnxruntime 1.32.0
#   PyTorch: [0.0, 0.5]
#   ONNX Runtime, optimize=True, + 1e-08: [nan, 0.5], operators Div
#   ONNX Runtime, optimize=True, + 1e-06: [0.0, 0.5], operators Add Div
#   ONNX Runtime, optimize=False, + 1e-08: [0.0, 0.5]
# Fails if these versions behave otherwise. It downloads torch, about 3 GB on Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import onnxruntime
import torch

names = ("torch", "onnxscript", "onnxruntime")
print(", ".join(f"{name} {version(name).partition('+')[0]}" for name in names))


class Average(torch.nn.Module):
    def __init__(self, epsilon):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, total, area):
        return total / (area + self.epsilon)


total, area = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])
expected = Average(1e-8)(total, area).tolist()
print("PyTorch:", expected)
assert expected == [0, 0.5]


def exported(epsilon, optimize):
    path = f"{sys.argv[1]}/model.onnx"
    program = torch.onnx.export(
        Average(epsilon), (total, area), dynamo=True, verbose=False, optimize=optimize
    )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = dict(zip((value.name for value in session.get_inputs()), (total.numpy(), area.numpy())))
    (found,) = session.run(None, feed)
    operators = " ".join(node.op_type for node in program.model.graph)
    text = f"ONNX Runtime, optimize={optimize}, + {epsilon:g}: {np.round(found, 3).tolist()}"
    print(text + (f", operators {operators}" if optimize else ""))
    return found, operators


found, operators = exported(1e-8, optimize=True)
assert np.isnan(found[0]) and operators == "Div", "changed"
found, operators = exported(1e-6, optimize=True)
assert found[0] == 0 and operators == "Add Div", "changed"
found, _ = exported(1e-8, optimize=False)
assert found[0] == 0, "changed"
PYTHON
