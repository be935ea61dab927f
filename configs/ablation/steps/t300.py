# Features at diffusion step 300. Part of the paper's study of steps.
# Weights: those of configs/_base_/models/odise.py, Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
_base_ = ["../../_base_/ablation.py"]

model = dict(backbone=dict(steps=(300,)))
