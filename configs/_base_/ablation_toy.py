# The ablations in the toy world: caption supervision and base names, as configs/_base_/ablation.py
# for COCO. The frozen diffusion model and CLIP were trained in this world.
_base_ = ["toy_world_caption.py"]

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
