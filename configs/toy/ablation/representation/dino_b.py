# The row of configs/ablation/representation/dino_b.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(
        _delete_=True, type="TimmBackbone", model="vit_small_patch16_224", out_indices=(0, 1, 2, 3)
    ),
    neck=dict(levels=(4, 8, 16, 32)),
)
