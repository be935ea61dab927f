# The empty prompt for every image. Paper's captioner ablation, row "empty".
# Weights as configs/_base_/models/odise.py: Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
_base_ = ["../../_base_/ablation.py"]

model = dict(captioner=dict(type="EmptyCaptioner"))
