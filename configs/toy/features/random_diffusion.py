# The same diffusion network with random, frozen weights, to measure the effect of its pre-training.
_base_ = ["../odise_toy_label_4k.py"]

model = dict(backbone=dict(weights=None))
