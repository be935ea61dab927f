# Features at diffusion step 100. Paper's study of the steps.
# Weights as configs/_base_/models/odise.py: Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
_base_ = ["../../_base_/ablation.py"]

model = dict(backbone=dict(steps=(100,)))
