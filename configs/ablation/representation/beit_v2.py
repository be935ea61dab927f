# BEiT-v2, self-supervised. Row "BEiT-v2 (H)" of the paper.
# Weights: timm/beitv2_large_patch16_224.in1k_ft_in22k, Apache-2.0 (downloaded on first use).
# Differences: the paper's ViT-H was never published. This is the largest public model, a ViT-L. It
# was trained self-supervised on IN-1k and then with labels of IN-21k, at 224 pixels; relative
# position embeddings are interpolated to 512.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="beitv2_large_patch16_224.in1k_ft_in22k",
    weights="pretrained",
    image_size=512,
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
