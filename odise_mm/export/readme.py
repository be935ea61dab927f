"""README.md beside an exported model, with an example for its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

README_FILE = "README.md"

_LOADED = {
    "onnx": ("import onnxruntime", 'session = onnxruntime.InferenceSession("model.onnx")'),
    "torch": ("import torch", 'program = torch.export.load("model.pt2").module()'),
}
_RUN = {
    "onnx": "masks, probabilities = session.run(None, feed)",
    "torch": (
        "outputs = program(*map(torch.from_numpy, feed.values()))\n"
        "masks, probabilities = (output.detach().numpy() for output in outputs)"
    ),
}
_PACKAGES = {"onnx": "numpy onnxruntime pillow", "torch": "numpy torch pillow"}


def readme_of(description: dict[str, Any], formats: Sequence[str]) -> str:
    """Return the text of the README.

    Args:
        description: content of ``model.json``.
        formats: formats of the graphs in the folder. The example uses ONNX if it is among them.
    """
    format = "onnx" if "onnx" in formats else formats[0]
    package, load = _LOADED[format]
    names = "" if description["names"] == "baked" else ' | dict(np.load("names.npz"))'
    size = description["image_size"]
    if size is None:
        takes = "images of any size"
    else:
        takes = f"images of {size[0]} x {size[1]} pixels (height x width)"
    classes = [entry["name"] for entry in description["classes"]]
    shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    return f"""# Exported model

The model takes {takes}, and has {len(classes)} classes: {shown}. `model.json` describes it.
This example needs only `pip install {_PACKAGES[format]}`. It runs in this folder:

```python
import json
import numpy as np
{package}
from PIL import Image
from results import input_size, panoptic, prepare

description = json.load(open("model.json"))
{load}
photo = Image.open("photo.jpg").convert("RGB")
height, width = input_size((photo.height, photo.width), description)
image = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
feed = {{"image": prepare(image, description)}}{names}
{_RUN[format]}
ids, segments = panoptic(
    masks[0], probabilities[0], description, (photo.height, photo.width), (height, width)
)
for segment in segments:
    print(segment["id"], segment["name"], round(segment["score"], 2), segment["area"])
colors = np.random.default_rng(0).integers(64, 256, (len(segments) + 1, 3), np.uint8)
colors[0] = 0
Image.fromarray(colors[ids]).save("segments.png")
```

`ids` is a map of segment ids, 0 for void. The area of a segment is in pixels. Thresholds and
names of classes may be changed in `model.json`.
"""
