# Features of CLIP's image tower, which also classifies the masks, instead of the diffusion model's.
_base_ = ["../odise_toy_label_4k.py"]

model = dict(
    captioner=None,
    backbone=dict(_delete_=True, type="OpenCLIPBackbone"),
    neck=dict(levels=(4, 8, 16, 32)),
)
custom_hooks = [dict(type="FeatureCacheHook")]  # without a captioner, nothing in front is trained
