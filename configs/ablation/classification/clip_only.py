# Only CLIP classifies the masks: its prediction has all the weight in equation 10. The head still
# decides whether a mask is an object. It uses the checkpoint of both.py.
_base_ = ["../../_base_/ablation.py"]

model = dict(ensemble=dict(alpha=1.0, beta=1.0))
