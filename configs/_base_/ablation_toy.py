# Common settings of the ablations in the toy world, like configs/_base_/ablation.py for COCO:
# caption supervision and base names. The frozen diffusion model and CLIP were pre-trained in the
# toy world.
_base_ = ["toy_world_caption.py"]

max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
