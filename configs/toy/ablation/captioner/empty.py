# The row of configs/ablation/captioner/empty.py in miniature.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(captioner=dict(type="EmptyCaptioner"))
