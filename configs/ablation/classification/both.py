# Who names the masks: the model's own classifier and CLIP, joined by equation 10 (ODISE, section
# 3.6). Training is the same for all of this folder; only what happens after it differs.
_base_ = ["../../_base_/ablation.py"]
