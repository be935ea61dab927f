#!/usr/bin/env bash
# transformers 5.18.0: automatic mask generation with SAM 2 on an image that is not square.
#
# Expected: as in SAM 2's own code, a grid of points covers the image, each point with its masks.
# Seen: the pipeline scales the points as for SAM, which resizes images with their aspect ratio and
# pads them to a square. SAM 2 resizes images to a square without padding. So in an image of 90 x 30
# pixels, which becomes 64 x 64 in this tiny model, the lowest points of the grid are in row 18 of
# 64: no point lies in the lower two thirds of the image, and objects there are only found as parts
# of others. Nothing is logged. Sam2Processor, which users call for their own points, scales them
# correctly: a point in the lowest row of the grid, y = 26.25 of 30, becomes 56 of 64.
#
# Also seen: crops_n_layers=1, an option of the pipeline, raises an error, because the crops have
# different sizes and are stacked.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64 (weights are random: they do not matter):
#   transformers 5.18.0
#   image of 90 x 30 pixels, model input of 64 x 64: columns of points [8.0, 24.0, 40.0, 56.0]
#   image of 90 x 30 pixels, model input of 64 x 64: rows of points [2.625, 7.875, 13.125, 18.375]
#   Sam2Processor: the point (78.75, 26.25) of the image becomes [56.0, 56.0]
#   crops_n_layers=1: RuntimeError: stack expects each tensor to be equal size, but got [3, 30, 90] at entry 0 and [3, 20, 50] at entry 1
# Fails if 5.18.0 behaves otherwise. It downloads torch, about 3 GB on Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet transformers==5.18.0 torch==2.14.1 torchvision==0.29.1 pillow==12.3.0
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from PIL import Image
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor
from transformers.pipelines import MaskGenerationPipeline

print("transformers", version("transformers"))
backbone = dict(
    hidden_size=8,
    num_attention_heads=1,
    image_size=[64, 64],
    blocks_per_stage=[1, 1, 2, 1],
    embed_dim_per_stage=[8, 16, 32, 64],
    num_attention_heads_per_stage=[1, 1, 2, 2],
    window_size_per_stage=[4, 2, 2, 2],
    global_attention_blocks=[3],
    window_positional_embedding_background_size=[2, 2],
)
config = Sam2Config(
    vision_config=dict(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    ),
    prompt_encoder_config=dict(hidden_size=32, image_size=64, mask_input_channels=4),
    mask_decoder_config=dict(hidden_size=32, mlp_dim=32, num_attention_heads=2, num_hidden_layers=1),
)
model = Sam2Model(config).eval()
processor = Sam2ImageProcessor(size={"height": 64, "width": 64})
pipeline = MaskGenerationPipeline(model=model, image_processor=processor)
image = Image.new("RGB", (90, 30))

seen = []
model.prompt_encoder.register_forward_pre_hook(
    lambda _, __, inputs: seen.append(inputs["input_points"].reshape(-1, 2)), with_kwargs=True
)
pipeline(image, points_per_crop=4)
points = torch.cat(seen)
columns, rows = points[:, 0].unique().tolist(), points[:, 1].unique().tolist()
what = "image of 90 x 30 pixels, model input of 64 x 64"
print(f"{what}: columns of points", columns)
print(f"{what}: rows of points", rows)
assert columns == [8, 24, 40, 56] and rows == [2.625, 7.875, 13.125, 18.375], "changed"

own = Sam2Processor(processor)(
    images=image, input_points=[[[[78.75, 26.25]]]], return_tensors="pt"
)["input_points"].flatten()
own = [round(number, 3) for number in own.tolist()]
print("Sam2Processor: the point (78.75, 26.25) of the image becomes", own)
assert own == [56, 56], "changed"

try:
    pipeline(image, points_per_crop=4, crops_n_layers=1)
except RuntimeError as error:
    print("crops_n_layers=1: RuntimeError:", error)
    assert "equal size" in str(error), "changed"
else:
    raise SystemExit("changed: crops_n_layers=1 works")
PYTHON
