# The row of configs/ablation/classification/diffusion_only.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]
