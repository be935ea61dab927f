# Counterpart of configs/ablation/steps/t0_100_200.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(backbone=dict(steps=(0, 100, 200)))
