# Class-conditional latent diffusion, trained on ImageNet. Row "LDM" of the paper.
# Weights: CompVis/latent-diffusion's cin256-v2, "Class-Conditional ImageNet". Download
# https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt manually (other public programs
# use this address; not tried here). The code has the MIT license; none is stated for the weights.
# Differences: the paper does not specify the taps; this config uses the last block of every level,
# as in ODISE. The model was trained on 256 x 256 pixels; here its input is 512 x 512.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    arch="ldm_cin256",
    weights="checkpoints/cin256-v2/model.ckpt",
    taps=dict(vae_encoder=(5,), unet=(2, 5, 8, 11), vae_decoder=(2,)),
)
model = dict(backbone=backbone)
