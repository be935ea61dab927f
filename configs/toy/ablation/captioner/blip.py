# The row of configs/ablation/captioner/blip.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(captioner=dict(type="BLIPCaptioner", arch="tiny", weights=None))
