# Counterpart of configs/ablation/representation/stable_diffusion.py with the toy world's
# diffusion model.
_base_ = ["../../../_base_/ablation_toy.py"]
