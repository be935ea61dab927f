# Class-conditional latent diffusion, trained on ImageNet. Row "LDM" of the paper.
# Weights: CompVis/latent-diffusion's cin256-v2, "Class-Conditional ImageNet": fetch
# https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt by hand (address as other public
# programs fetch it, not tried here). MIT license for its code, none stated for the weights.
# Deviates: the paper does not say which taps it read; these are the last block of every level, as
# in ODISE. The model was trained on 256 x 256; here it sees 512 x 512 at once.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    arch="ldm_cin256",
    weights="checkpoints/cin256-v2/model.ckpt",
    taps=dict(vae_encoder=(5,), unet=(2, 5, 8, 11), vae_decoder=(2,)),
)
model = dict(backbone=backbone)
