# The ablations in the toy world: caption supervision and base names, as configs/_base_/ablation.py
# for COCO. Of the frozen networks the diffusion model and CLIP are trained, as those of the real
# world are; the others stand in with random weights, and their rows say how far such ones get.
_base_ = ["toy_world_caption.py"]

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
