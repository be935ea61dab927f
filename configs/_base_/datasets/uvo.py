# UVO, frames of the validation split: class-agnostic instance segmentation. Prepare it with
# tools/dataset_converters/uvo.py, see docs/datasets.md.
_base_ = ["../test_pipeline.py"]

data_root = "data/uvo/"

test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="InstanceDataset",
        class_agnostic=True,
        data_root=data_root,
        ann_file="annotations/frame_val.json",
        data_prefix=dict(img="uvo_videos_sparse_frames/"),
        pipeline=_base_.test_pipeline,
        test_mode=True,
    ),
)
test_evaluator = [
    dict(type="AverageRecall", ann_file=data_root + "annotations/frame_val.json", max_dets=100)
]
test_cfg = dict(type="OpenVocabTestLoop")
