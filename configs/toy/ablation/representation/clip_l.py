# The row of configs/ablation/representation/clip_l.py in the toy world: its own, trained CLIP.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="OpenCLIPBackbone"),
    neck=dict(levels=(4, 8, 16, 32)),
)
