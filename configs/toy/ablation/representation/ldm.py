# The row of configs/ablation/representation/ldm.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]

backbone = dict(arch="tiny_ldm", taps=dict(vae_encoder=(5,), unet=(2, 5, 8, 11), vae_decoder=(2,)))
model = dict(backbone=backbone)
