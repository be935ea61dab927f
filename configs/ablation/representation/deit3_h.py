# DeiT-v3 (H): a ViT-H trained with labels, IN-21k. Row "DeiT-v3 (H)" of the paper.
# Weights: timm/deit3_huge_patch14_224.fb_in22k_ft_in1k, Apache-2.0 (downloaded on first use).
# Differences: the public weights were fine-tuned on IN-1k, at 224 pixels; position embeddings are
# interpolated.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="deit3_huge_patch14_224.fb_in22k_ft_in1k",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
