# Names from CLIP alone: its prediction has all the weight in equation 10. Whether a mask is an
# object at all still comes from the head. A checkpoint of both.py serves as it is.
_base_ = ["../../_base_/ablation.py"]

model = dict(ensemble=dict(alpha=1.0, beta=1.0))
