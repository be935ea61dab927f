# The row of configs/ablation/captioner/implicit.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]
