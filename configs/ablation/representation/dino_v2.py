# DINOv2 (L): a ViT-L/14, self-supervised, LVD-142M. Not in the paper.
# Weights: timm/vit_large_patch14_dinov2.lvd142m, Apache-2.0 (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_large_patch14_dinov2.lvd142m",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
