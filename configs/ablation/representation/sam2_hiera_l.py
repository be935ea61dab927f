# SAM 2.1's image encoder (Hiera-L), a pyramid of strides 4 to 32. Not in the paper.
# Weights: timm/sam2_hiera_large.fb_r1024_2pt1, Apache-2.0 (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="sam2_hiera_large.fb_r1024_2pt1",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone)
