# ODISE trained with COCO captions and class-agnostic masks (published: odise_caption_coco_50e).
_base_ = ["../_base_/default_runtime.py", "../_base_/models/odise_caption.py"]
