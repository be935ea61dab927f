# The UNet's features at diffusion steps 0, 100 and 200, concatenated. Paper's study of the steps.
# Weights as configs/_base_/models/odise.py: Stable Diffusion v1-3 (CreativeML OpenRAIL-M).
# Deviates: which steps the paper concatenated is not known here.
_base_ = ["../../_base_/ablation.py"]

model = dict(backbone=dict(steps=(0, 100, 200)))
