_base_ = [
    "../_base_/models/odise_label.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/default_runtime.py",
]
