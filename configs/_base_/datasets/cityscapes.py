# Cityscapes, 19 classes: panoptic, instance (8 classes) and semantic segmentation. Prepare it with
# tools/dataset_converters/cityscapes.py, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

data_root = "data/cityscapes/"

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="PanopticDataset",
        vocabulary="cityscapes",
        data_root=data_root,
        ann_file="annotations/panoptic_val.json",
        data_prefix=dict(
            img="leftImg8bit/val/", seg="annotations/panoptic_val/", sem_seg="gtFine/val/"
        ),
        img_suffix="_leftImg8bit.png",
        sem_seg_suffix="_gtFine_labelTrainIds.png",
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="InstanceAP", ann_file=data_root + "annotations/instances_val.json"),
    dict(type="SemanticIoU"),
]
test_cfg = dict(type="OpenVocabTestLoop")
