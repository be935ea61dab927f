_base_ = [
    "../_base_/models/fcclip.py",
    "../_base_/datasets/mapillary.py",
    "../_base_/default_runtime.py",
]
