_base_ = [
    "../_base_/models/odise_label.py",
    "../_base_/datasets/lvis.py",
    "../_base_/default_runtime.py",
]
