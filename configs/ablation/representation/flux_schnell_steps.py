# FLUX.1 [schnell] at three diffusion steps, joined with learned weights. Not in the paper.
# Weights: those of flux_schnell.py, Apache-2.0. After MMDiff (arXiv 2606.16673), whose weights also
# vary over positions; here each map has one weight per step. The steps are not MMDiff's.
_base_ = ["flux_schnell.py"]

model = dict(backbone=dict(steps=(100, 260, 500)), neck=dict(join_steps=True))
