# TIPSv2 (L/14): images and captions, with self-distillation. Not in the paper.
# Weights: timm/vit_large_patch14_reg1_tipsv2.webli, Apache-2.0 (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_large_patch14_reg1_tipsv2.webli",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
