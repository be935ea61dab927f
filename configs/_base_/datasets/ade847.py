# ADE20K, 847 classes of the full release. Prepare it with tools/dataset_converters/ade20k_full.py,
# which also writes the vocabulary, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="SemanticDataset",
        vocabulary="ade847.txt",
        data_root="data/ADE20K_2021_17_01/",
        data_prefix=dict(
            img_path="images/ADE/validation/", seg_map_path="annotations_847/validation/"
        ),
        img_suffix=".jpg",
        seg_map_suffix=".png",
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [dict(type="SemanticIoU")]
test_cfg = dict(type="OpenVocabTestLoop")
