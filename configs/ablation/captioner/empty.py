# The empty prompt for every image. Row "empty" of the paper's captioner ablation.
# Weights: those of configs/_base_/models/odise.py, Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(type="EmptyCaptioner"))
