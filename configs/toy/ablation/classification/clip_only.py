# Counterpart of configs/ablation/classification/clip_only.py in the toy world.
_base_ = ["./both.py"]

model = dict(ensemble=dict(alpha=1.0, beta=1.0))
