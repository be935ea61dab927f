# What is the diffusion model's training worth? The same network before it, random weights, frozen.
_base_ = ["../odise_toy_label.py"]

model = dict(backbone=dict(weights=None))
