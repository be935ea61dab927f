# OVRCOAT with CLIP ConvNeXt-L (published weights: ovrcoat.pth), tested on ADE20K.
_base_ = [
    "../_base_/models/ovrcoat.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/default_runtime.py",
]

# Short edge 800, long edge at most 1333.
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(1333, 800)),
    _base_.test_pipeline[-1],
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
