# LVIS v1, 1203 classes: instance segmentation. It uses the provider's annotations and COCO's images
# without conversion, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

data_root = "data/"

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="InstanceDataset",
        vocabulary="lvis",
        data_root=data_root,
        ann_file="lvis/lvis_v1_val.json",
        data_prefix=dict(img="coco/"),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [dict(type="LVISInstanceAP", ann_file=data_root + "lvis/lvis_v1_val.json")]
test_cfg = dict(type="OpenVocabTestLoop")
