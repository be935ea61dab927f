# The row of configs/ablation/representation/sdxl.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(backbone=dict(arch="tiny_sdxl", taps=dict(unet=(2, 5, 8))))
