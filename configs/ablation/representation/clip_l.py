# CLIP (L): the image tower of the CLIP that the model already has. Row "CLIP (L)" of the paper.
# Weights: OpenAI's ViT-L/14 at 336 pixels, MIT, open_clip tag "openai"; no additional ones.
# Differences: the paper does not specify whether its tower used 224 or 336 pixels.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(_delete_=True, type="OpenCLIPBackbone")
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
