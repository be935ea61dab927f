# The toy world's diffusion model with random weights, to measure the effect of its pre-training.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(backbone=dict(weights=None))
