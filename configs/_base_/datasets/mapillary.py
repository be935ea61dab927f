# Mapillary Vistas 1.2, 65 classes: panoptic and semantic segmentation. Prepare it with
# tools/dataset_converters/mapillary.py, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="PanopticDataset",
        vocabulary="mapillary",
        data_root="data/mapillary/",
        ann_file="annotations/panoptic_validation.json",
        data_prefix=dict(img="validation/images/", seg="annotations/panoptic_validation/"),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="SemanticIoU"),  # the classes of the panoptic segments
]
test_cfg = dict(type="OpenVocabTestLoop")
