# Counterpart of configs/ablation/classification/both.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]
