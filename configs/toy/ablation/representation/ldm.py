# The row of configs/ablation/representation/ldm.py in the toy world, with random weights.
_base_ = ["../../../_base_/ablation_toy.py"]

taps = dict(vae_encoder=(5,), unet=(2, 5, 8, 11), vae_decoder=(2,))
model = dict(backbone=dict(_delete_=True, type="DiffusionBackbone", arch="tiny_ldm", taps=taps))
