# ODISE on FLUX.1 [dev], a diffusion transformer of 12 billion parameters. Not in the paper.
# Weights: black-forest-labs/FLUX.1-dev, FLUX.1 [dev] Non-Commercial License, gated: accept it on
# the hub and log in (not downloaded here). The blocks up to the last tap have 7.8 billion
# parameters, 31 GB in float32; T5-XXL (19 GB) runs once, on the empty prompt, when the weights are
# read. The last tap, block 28, and step 260 are those of DiTF (arXiv 2505.18584).
# Blocks 7, 14 and 21 are not tuned.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="DiTBackbone",
    arch="flux_dev",
    weights="black-forest-labs/FLUX.1-dev",
    steps=(260,),
)
model = dict(backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
optim_wrapper = dict(dtype="bfloat16", loss_scale=dict(_delete_=True, enabled=False))
