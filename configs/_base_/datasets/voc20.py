# Pascal VOC 2012, 20 classes, background ignored. It needs no conversion, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="SemanticDataset",
        vocabulary="voc20",
        data_root="data/VOCdevkit/VOC2012/",
        ann_file="ImageSets/Segmentation/val.txt",
        data_prefix=dict(img_path="JPEGImages/", seg_map_path="SegmentationClass/"),
        img_suffix=".jpg",
        seg_map_suffix=".png",
        reduce_zero_label=True,  # 0 is the background
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [dict(type="SemanticIoU")]
test_cfg = dict(type="OpenVocabTestLoop")
