# DINOv3 (L): a ViT-L/16, self-supervised, LVD-1689M. Not in the paper.
# Weights: timm/vit_large_patch16_dinov3.lvd1689m, DINOv3 license (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_large_patch16_dinov3.lvd1689m",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
