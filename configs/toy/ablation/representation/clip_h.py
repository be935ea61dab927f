# The row of configs/ablation/representation/clip_h.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

vision = dict(image_size=56, layers=4, width=128, head_width=64, patch_size=14)
model = dict(
    captioner=None,
    backbone=dict(
        _delete_=True, type="OpenCLIPBackbone", model=dict(embed_dim=64, vision_cfg=vision)
    ),
    neck=dict(levels=(4, 8, 16, 32)),
)
