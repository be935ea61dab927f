# Counterpart of configs/ablation/steps/t500.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(backbone=dict(steps=(500,)))
