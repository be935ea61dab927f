# The row of configs/ablation/representation/stable_diffusion.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]
