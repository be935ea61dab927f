# The row of configs/ablation/representation/beit_v2.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model="beitv2_base_patch16_224",
        out_indices=(0, 1, 2, 3),
        image_size=128,
    ),
    neck=dict(levels=(4, 8, 16, 32)),
)
