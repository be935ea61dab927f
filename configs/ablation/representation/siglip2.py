# SigLIP 2 (So400m/16 at 512 pixels): the image tower, trained with text, WebLI. Not in the paper.
# Weights: timm/vit_so400m_patch16_siglip_512.v2_webli, Apache-2.0 (downloaded on first use).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_so400m_patch16_siglip_512.v2_webli",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
