# CLIP with a ConvNeXt-L as image tower, LAION-2B, 320 pixels. Not in the paper.
# Weights: laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup, MIT, an open_clip tag
# (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="OpenCLIPBackbone",
    model="convnext_large_d_320",
    weights="laion2b_s29b_b131k_ft_soup",
)
model = dict(captioner=None, backbone=backbone)
