# DINO (B): a ViT-B/16, self-supervised, IN-1k. Row "DINO (B)" of the paper.
# Weights: timm/vit_base_patch16_224.dino, Apache-2.0 (downloaded on first use).
# Differences: the paper does not specify the patch size (16 or 8); trained at 224 pixels.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True, type="TimmBackbone", model="vit_base_patch16_224.dino", weights="pretrained"
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
