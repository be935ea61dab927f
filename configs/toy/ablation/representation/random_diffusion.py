# The toy world's diffusion model before its training: what is its training worth?
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(backbone=dict(weights=None))
