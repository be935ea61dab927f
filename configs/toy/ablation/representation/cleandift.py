# The row of configs/ablation/representation/cleandift.py in the toy world.
_base_ = ["sd_v2.py"]

model = dict(backbone=dict(steps=(-1,)))
