# MaskCLIP++ with CLIP ConvNeXt-L, trained with COCO panoptic labels, on masks of FC-CLIP.
_base_ = ["../fcclip/fcclip_ade20k.py", "../_base_/models/maskclippp.py"]

model = dict(
    _delete_=True,
    **_base_.maskclippp,
    proposals=dict(
        type="SegmentorProposals",
        segmentor=_base_.model,
        weights="checkpoints/fcclip_cocopan.pth",
        num_classifiers=1,
        short_side=800,
    ),
)

test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=_base_.image_scale),
    _base_.test_pipeline[-1],
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
