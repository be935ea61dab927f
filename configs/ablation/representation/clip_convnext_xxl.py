# CLIP with a ConvNeXt-XXL as image tower, LAION-2B, 256 pixels. Not in the paper.
# Weights: laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup, MIT, an open_clip tag
# (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="OpenCLIPBackbone",
    model="convnext_xxlarge",
    weights="laion2b_s34b_b82k_augreg_soup",
)
model = dict(captioner=None, backbone=backbone)
