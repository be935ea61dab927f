# ODISE trained with COCO panoptic labels (published weights: odise_label_coco_50e).
_base_ = ["../_base_/default_runtime.py", "../_base_/models/odise_label.py"]
