# Perception Encoder, spatial (L/14 at 448 pixels): tuned to SAM 2.1's masks. Not in the paper.
# Weights: timm/vit_pe_spatial_large_patch14_448.fb, Apache-2.0 (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_pe_spatial_large_patch14_448.fb",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
