# MaskCLIP++ with CLIP ConvNeXt-L on masks of ODISE.
_base_ = ["../odise/odise_label_ade20k.py", "../_base_/models/maskclippp.py"]

model = dict(
    _delete_=True,
    **_base_.maskclippp,
    proposals=dict(
        type="SegmentorProposals",
        segmentor=_base_.model,
        weights="checkpoints/odise_label_coco_50e-b67d2efc.pth",
        num_classifiers=1,
        short_side=1024,
    ),
)

test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=_base_.image_scale),
    _base_.test_pipeline[-1],
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
