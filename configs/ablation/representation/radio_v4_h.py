# C-RADIOv4 (H/16): distilled from several foundation models. Not in the paper.
# Weights: timm/vit_huge_patch16_radio_v4.c_radio, NVIDIA open model license (downloaded).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_huge_patch16_radio_v4.c_radio",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
