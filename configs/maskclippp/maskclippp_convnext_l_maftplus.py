# MaskCLIP++ with CLIP ConvNeXt-L on masks of MAFT+.
_base_ = ["../maftplus/maftplus_convnext_l.py", "../_base_/models/maskclippp.py"]

model = dict(
    _delete_=True,
    **_base_.maskclippp,
    proposals=dict(
        type="SegmentorProposals",
        segmentor=_base_.model,
        weights="checkpoints/maftp_l_pano.pth",
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
