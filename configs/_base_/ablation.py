# Common settings of all ablations (ODISE, section 4.3): images of 512 x 512 pixels, and the caption
# supervision, head, schedule and data of configs/odise/odise_coco_caption.py. Each row changes only
# the part that it studies.
_base_ = [
    "models/odise_caption.py",
    "datasets/coco.py",
    "schedules/coco_92k.py",
    "default_runtime.py",
]

image_size = 512
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadPanopticMap"),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(
        type="LargeScaleJitter",
        scale=(image_size, image_size),
        ratio_range=(0.1, 2.0),
        crop_size=(image_size, image_size),
    ),
    dict(type="mmdet.Pad", size=(image_size, image_size), pad_val=dict(img=(128,) * 3, seg=0)),
    dict(type="PanopticMapToMasks"),
    dict(type="DrawWords", num_words=8),
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.train_pipeline[-1].meta_keys),
]
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(1280, image_size)),  # long edge at most, short edge
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.test_pipeline[-1].meta_keys),
]
# Written by tools/dataset_converters/coco.py.
phrases = "annotations/phrases_train2017.json"
train_dataloader = dict(dataset=dict(phrases_file=phrases, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
