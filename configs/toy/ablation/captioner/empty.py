# Counterpart of configs/ablation/captioner/empty.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

model = dict(captioner=dict(type="EmptyCaptioner"))
