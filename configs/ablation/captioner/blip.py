# BLIP's caption of every tile, decoded greedily. Row "BLIP" of the paper's captioner ablation.
# Weights: Salesforce/blip-image-captioning-large (BSD-3-Clause; 446 M parameters, frozen), in
# addition to those of configs/_base_/models/odise.py.
# Differences: the paper does not specify BLIP's size and decoding.
_base_ = ["../../_base_/ablation.py"]

weights = "Salesforce/blip-image-captioning-large"
model = dict(captioner=dict(type="BLIPCaptioner", arch="large", weights=weights))
