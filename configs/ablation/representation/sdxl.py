# ODISE on SDXL. Not in the paper.
# Weights: stabilityai/stable-diffusion-xl-base-1.0, CreativeML Open RAIL++-M.
# Its UNet has three levels; the coarsest has stride 32. It was trained on 1024 x 1024 pixels; here
# its input is 512 x 512, and its size condition is set accordingly. Its autoencoder overflows in
# float16, so use bf16 or fp32.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    arch="sdxl",
    weights="stabilityai/stable-diffusion-xl-base-1.0",
    taps=dict(unet=(2, 5, 8)),
)
model = dict(backbone=backbone)
optim_wrapper = dict(dtype="bfloat16", loss_scale=dict(_delete_=True, enabled=False))
