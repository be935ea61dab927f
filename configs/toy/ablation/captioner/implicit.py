# Counterpart of configs/ablation/captioner/implicit.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]
