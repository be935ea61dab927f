# CLIP's features instead of the diffusion model's: the image tower that also says its prediction.
_base_ = ["../odise_toy_label.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="OpenCLIPBackbone"),
    neck=dict(levels=(4, 8, 16, 32)),
)
