# Counterpart of configs/ablation/representation/clip_l.py with the toy world's CLIP.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="OpenCLIPBackbone"),
    neck=dict(levels=(4, 8, 16, 32)),
)
