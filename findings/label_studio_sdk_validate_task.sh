#!/usr/bin/env bash
# label-studio-sdk 2.1.2: LabelInterface checks a task that has a prediction.
#
# Expected: validate_task returns True, as validate_prediction does for the prediction alone.
# Seen: validate_task calls validate_prediction without the prediction, which raises a TypeError.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   label-studio-sdk 2.1.2
#   validate_prediction: True
#   validate_task without predictions: True
#   validate_task with predictions: TypeError: LabelInterface.validate_prediction() missing 1 required positional argument: 'prediction'
# Fails if 2.1.2 behaves otherwise. Needs 0.5 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet label-studio-sdk==2.1.2
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from label_studio_sdk.label_interface import LabelInterface

print("label-studio-sdk", version("label-studio-sdk"))
config = LabelInterface(
    '<View><Image name="image" value="$image"/><Choices name="kind" toName="image">'
    '<Choice value="cat"/></Choices></View>'
)
choice = {"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
prediction = {"model_version": "1", "score": 0.5, "result": [choice]}
valid = config.validate_prediction(prediction)
print("validate_prediction:", valid)
task = {"data": {"image": "https://example.com/1.jpg"}}
alone = config.validate_task(task)
print("validate_task without predictions:", alone)
assert valid and alone, "changed"
try:
    config.validate_task(task | {"predictions": [prediction]})
except TypeError as error:
    print(f"validate_task with predictions: TypeError: {error}")
else:
    raise SystemExit("changed: the task is checked")
PYTHON
