# AIMv2 (H/14 at 448 pixels): trained to predict pixels and text. Not in the paper.
# Weights: timm/aimv2_huge_patch14_448.apple_pt, Apple ML research license (downloaded).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="aimv2_huge_patch14_448.apple_pt",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
