# The row of configs/ablation/representation/eva02.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(
        _delete_=True, type="TimmBackbone", model="eva02_tiny_patch14_224", out_indices=(0, 1, 2, 3)
    ),
    neck=dict(levels=(4, 8, 16, 32)),
)
