# ODISE on PixArt-Sigma, a diffusion transformer of 0.6 billion parameters. Not in the paper.
# Weights: PixArt-alpha/PixArt-Sigma-XL-2-1024-MS, CreativeML Open RAIL++-M (not downloaded here).
# The text encoder, T5-XXL (19 GB in float32), runs once, on the empty prompt, when the weights are
# read. The model was trained on 1024 x 1024 pixels; here its input is 512 x 512. Blocks and step
# are not tuned.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="DiTBackbone",
    arch="pixart_sigma",
    weights="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    steps=(0,),
)
model = dict(backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
optim_wrapper = dict(dtype="bfloat16", loss_scale=dict(_delete_=True, enabled=False))
