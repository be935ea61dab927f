# BLIP's caption of every tile, greedy. Paper's captioner ablation, row "BLIP".
# Weights: Salesforce/blip-image-captioning-large (BSD-3-Clause; 446 M parameters, frozen), beside
# those of configs/_base_/models/odise.py.
# Deviates: the paper does not say which of BLIP's sizes it took, nor how it decoded.
_base_ = ["../../_base_/ablation.py"]

weights = "Salesforce/blip-image-captioning-large"
model = dict(captioner=dict(type="BLIPCaptioner", arch="large", weights=weights))
