# ADE20K, 150 classes: panoptic, instance and semantic segmentation. Prepare it with
# tools/dataset_converters/ade20k.py, see docs/datasets.md. The semantic ground truth is the
# provider's label maps.
_base_ = ["../test_pipeline.py"]

data_root = "data/ADEChallengeData2016/"

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="PanopticDataset",
        vocabulary="ade20k",
        data_root=data_root,
        ann_file="panoptic_val.json",
        data_prefix=dict(
            img="images/validation/", seg="panoptic_val/", sem_seg="annotations/validation/"
        ),
        reduce_zero_label=True,
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="InstanceAP", ann_file=data_root + "instances_val.json"),
    dict(type="SemanticIoU"),
]
test_cfg = dict(type="OpenVocabTestLoop")
