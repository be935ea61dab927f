# The row of configs/ablation/representation/swin.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="TimmBackbone", model="swin_tiny_patch4_window7_224"),
)
