# Pascal Context, 459 classes. Prepare it with tools/dataset_converters/pascal_context.py, which
# also writes the vocabulary, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="SemanticDataset",
        vocabulary="pc459.txt",
        data_root="data/VOCdevkit/VOC2010/",
        ann_file="pascal_context_val.txt",
        data_prefix=dict(img_path="JPEGImages/", seg_map_path="annotations_pc459/"),
        img_suffix=".jpg",
        seg_map_suffix=".png",
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [dict(type="SemanticIoU")]
test_cfg = dict(type="OpenVocabTestLoop")
