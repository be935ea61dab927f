# MAE (H): a ViT-H, self-supervised, IN-1k. Row "MAE (H)" of the paper.
# Weights: timm/vit_huge_patch14_224.mae, CC-BY-NC-4.0 (downloaded on first use).
# Differences: trained at 224 pixels; position embeddings are interpolated.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True, type="TimmBackbone", model="vit_huge_patch14_224.mae", weights="pretrained"
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
