# COCO 2017 panoptic: 133 classes (80 things, 53 stuff). Layout: docs/training_data.md.
_base_ = ["../test_pipeline.py"]

data_root = "data/coco/"

# Large-scale jitter: the image is resized to fit a box of 1024 x 1024 pixels times 0.1 to 2.0, and
# the result is cropped or padded (gray, 128) to 1024 x 1024 pixels.
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadPanopticMap"),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(
        type="LargeScaleJitter",
        scale=(1024, 1024),
        ratio_range=(0.1, 2.0),
        crop_size=(1024, 1024),
    ),
    dict(type="mmdet.Pad", size=(1024, 1024), pad_val=dict(img=(128, 128, 128), seg=0)),
    dict(type="PanopticMapToMasks"),
    dict(type="DrawWords", num_words=8),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=(
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
            "flip",
            "words",
            "caption",  # if the dataset has captions
        ),
    ),
]
train_dataloader = dict(
    batch_size=8,  # per GPU; 64 in total on 8 GPUs
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="SeededSampler"),
    dataset=dict(
        type="PanopticDataset",
        vocabulary="coco",
        data_root=data_root,
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(img="train2017/", seg="annotations/panoptic_train2017/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="PanopticDataset",
        vocabulary="coco",
        data_root=data_root,
        ann_file="annotations/panoptic_val2017.json",
        data_prefix=dict(img="val2017/", seg="annotations/panoptic_val2017/"),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="InstanceAP", ann_file=data_root + "annotations/instances_val2017.json"),
    dict(type="SemanticIoU"),
]
test_evaluator = val_evaluator
val_cfg = dict(type="OpenVocabValLoop")
test_cfg = dict(type="OpenVocabTestLoop")
