# CleanDIFT (arXiv 2412.03439): Stable Diffusion 2.1 with a UNet fine-tuned for clean images, so no
# noise is added. Not in the paper.
# Weights: CompVis/cleandift, MIT; the rest is Stable Diffusion 2.1, CreativeML Open RAIL++-M, in
# the community's copy. The model card does not specify the time step; this config uses 0.
_base_ = ["sd_v2.py"]

unet = dict(weights="hf://CompVis/cleandift/cleandift_sd21_unet.safetensors")
model = dict(backbone=dict(unet=unet, steps=(-1,)))
