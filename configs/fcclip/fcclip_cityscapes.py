_base_ = [
    "../_base_/models/fcclip.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/default_runtime.py",
]
