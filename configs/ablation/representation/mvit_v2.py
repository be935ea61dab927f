# MViT-v2 (H), trained with labels, IN-21k. Row "MViT (H)" of the paper.
# Weights: timm/mvitv2_huge_cls.fb_inw21k, Apache-2.0 according to timm's model card (downloaded on
# first use).
# Differences: trained at 224 pixels; relative position embeddings are interpolated to 512.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="mvitv2_huge_cls.fb_inw21k",
    weights="pretrained",
    image_size=512,
)
model = dict(captioner=None, backbone=backbone)
