# The row of configs/ablation/representation/stable_diffusion.py in the toy world: its own, trained
# diffusion model.
_base_ = ["../../../_base_/ablation_toy.py"]
