# ODISE trained with COCO captions and class-agnostic masks (published: odise_caption_coco_50e).
_base_ = [
    "../_base_/models/odise_caption.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/coco_92k.py",
    "../_base_/default_runtime.py",
]

# Written by tools/dataset_converters/coco.py.
train_dataloader = dict(dataset=dict(phrases_file="annotations/phrases_train2017.json"))
