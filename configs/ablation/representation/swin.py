# Swin, trained with labels, IN-21k. Row "Swin (H)" of the paper.
# Weights: timm/swin_large_patch4_window12_384.ms_in22k, MIT (downloaded on first use).
# Differences: the paper's Swin-H was never published. This is the largest public one, Swin-L.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="swin_large_patch4_window12_384.ms_in22k",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone)
