# The row of configs/ablation/representation/mvit_v2.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="TimmBackbone", model="mvitv2_tiny", image_size=128),
)
