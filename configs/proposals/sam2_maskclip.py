# Masks of SAM 2.1 at a grid of points, named by CLIP.
_base_ = ["../_base_/proposals.py"]

model = dict(proposals=dict(type="SamProposals", weights="facebook/sam2.1-hiera-large"))
