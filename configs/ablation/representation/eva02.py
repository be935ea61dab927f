# EVA-02 (L): a ViT-L/14 trained to predict EVA-CLIP's features from masked images (Merged-38M),
# then with labels of IN-21k, at 448 pixels. Not in the paper.
# Weights: timm/eva02_large_patch14_448.mim_m38m_ft_in22k, MIT (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="eva02_large_patch14_448.mim_m38m_ft_in22k",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
