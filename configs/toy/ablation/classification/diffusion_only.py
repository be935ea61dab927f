# Counterpart of configs/ablation/classification/diffusion_only.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(classifiers=[_base_.model.classifiers[0]])
