# ODISE on Stable Diffusion 3.5 (medium), a diffusion transformer. Not in the paper.
# Weights: stabilityai/stable-diffusion-3.5-medium, Stability AI Community License, gated: accept it
# on the hub and log in (not downloaded here). T5-XXL, the largest of three text encoders (19 GB in
# float32), runs once, on the empty prompt, when the weights are read. For the large model, set
# arch="sd35_large" and weights="stabilityai/stable-diffusion-3.5-large". Blocks and step are not
# tuned.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="DiTBackbone",
    arch="sd35_medium",
    weights="stabilityai/stable-diffusion-3.5-medium",
    steps=(260,),
)
model = dict(backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
optim_wrapper = dict(dtype="bfloat16", loss_scale=dict(_delete_=True, enabled=False))
