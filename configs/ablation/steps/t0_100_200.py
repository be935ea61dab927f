# Concatenated UNet features of diffusion steps 0, 100 and 200. Part of the paper's study of steps.
# Weights: those of configs/_base_/models/odise.py, Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
# Differences: the steps that the paper concatenated are not known.
_base_ = ["../../_base_/ablation.py"]

model = dict(backbone=dict(steps=(0, 100, 200)))
