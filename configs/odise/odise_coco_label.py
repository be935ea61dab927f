# ODISE trained with COCO panoptic labels (published weights: odise_label_coco_50e).
_base_ = [
    "../_base_/models/odise_label.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/coco_92k.py",
    "../_base_/default_runtime.py",
]
