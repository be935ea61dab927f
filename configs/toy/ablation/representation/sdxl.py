# The row of configs/ablation/representation/sdxl.py in the toy world, with random weights.
_base_ = ["../../../_base_/ablation_toy.py"]

taps = dict(vae_encoder=(5, 7), unet=(2, 5, 8), vae_decoder=(2, 5))
model = dict(backbone=dict(_delete_=True, type="DiffusionBackbone", arch="tiny_sdxl", taps=taps))
