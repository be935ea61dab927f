# ODISE on FLUX.1 [schnell], a diffusion transformer of 12 billion parameters. Not in the paper.
# Weights: black-forest-labs/FLUX.1-schnell, Apache-2.0 (not downloaded here). The blocks up to the
# last tap have 7.8 billion parameters, 31 GB in float32; T5-XXL (19 GB) runs once, on the empty
# prompt, when the weights are read. Blocks and step are those of flux_dev.py.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="DiTBackbone",
    arch="flux_schnell",
    weights="black-forest-labs/FLUX.1-schnell",
    steps=(260,),
)
model = dict(backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
optim_wrapper = dict(dtype="bfloat16", loss_scale=dict(_delete_=True, enabled=False))
