# ODISE with a tiny diffusion model and a tiny CLIP, for testing the code without downloads. The
# weights are random, so its results are meaningless.
_base_ = ["../odise/odise_coco_label.py"]

random_weights = True

model = dict(
    clip=dict(
        _delete_=True,
        type="FrozenCLIP",
        model=dict(
            embed_dim=64,
            quick_gelu=True,
            vision_cfg=dict(image_size=56, layers=2, width=128, head_width=64, patch_size=14),
            text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2),
        ),
        weights=None,
    ),
    backbone=dict(arch="tiny", weights=None),
    # Untrained masks overlap so much that the usual threshold, 0.8, would remove all of them.
    test_cfg=dict(overlap_threshold=0.2),
)

test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(1280, 512)),
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.test_pipeline[-1].meta_keys),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
