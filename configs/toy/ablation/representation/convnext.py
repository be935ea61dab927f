# The row of configs/ablation/representation/convnext.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="TimmBackbone", model="test_convnext"),
)
