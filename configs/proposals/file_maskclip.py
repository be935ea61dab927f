# Masks of a JSON file in COCO's format, named by CLIP.
_base_ = ["../_base_/proposals.py"]

model = dict(proposals=dict(type="FileProposals", file="data/proposals/ade20k_val.json"))
