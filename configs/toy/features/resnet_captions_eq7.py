# Counterpart of configs/baseline/baseline_r50_grounding.py in the toy world: resnet_captions.py
# with equation 7 as the paper writes it, a softmax over the words of the caption.
_base_ = ["./resnet_captions.py"]

model = dict(grounding=dict(softmax="words"))
