# FC-CLIP, trained with COCO panoptic labels.
_base_ = [
    "../_base_/models/fcclip.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/coco_369k.py",
    "../_base_/default_runtime.py",
]

# Short edge 800, long edge at most 1333.
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(1333, 800)),
    _base_.test_pipeline[-1],
]
train_dataloader = dict(batch_size=2)  # per GPU; 16 in all on 8 GPUs
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
