# Masks are classified by the model's own classifier and by CLIP, combined with equation 10 (ODISE,
# section 3.6). Training is the same for all configs in this folder; only testing differs.
_base_ = ["../../_base_/ablation.py"]
