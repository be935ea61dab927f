# The ablations in miniature: the same rows on two pictures with tiny networks, a minute or two each
# on a CPU. They show that every row runs, learns and is tested; their numbers compare nothing.
_base_ = ["../toy/overfit_real_coco_caption.py"]

width = 64
model = dict(
    tile_size=128,
    neck=dict(out_channels=width, bottleneck_channels=32),
    head=dict(
        feat_channels=width,
        out_channels=width,
        num_queries=40,
        pixel_decoder=dict(
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=width),
                    ffn_cfg=dict(embed_dims=width, feedforward_channels=256),
                ),
            ),
            positional_encoding=dict(num_feats=width // 2),
        ),
        positional_encoding=dict(num_feats=width // 2),
        transformer_decoder=dict(
            num_layers=2,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=width),
                cross_attn_cfg=dict(embed_dims=width),
                ffn_cfg=dict(embed_dims=width, feedforward_channels=256),
            ),
        ),
        train_cfg=dict(num_points=2048),
    ),
    classifiers=[
        dict(
            type="OpenVocabClassifier",
            embed_dim=width,
            null_class=False,
            template="a photo of a {}.",
        ),
    ],
)

resize = dict(type="ResizeKeepRatio", scale=(320, 128))
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadPanopticMap"),
    resize,
    dict(type="PanopticMapToMasks"),
    dict(type="DrawWords", num_words=8),
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.train_pipeline[-1].meta_keys),
]
test_pipeline = [
    dict(type="LoadImage"),
    resize,
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.test_pipeline[-1].meta_keys),
]

max_iters = 200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type="MultiStepLR", by_epoch=False, milestones=[170], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=max_iters), logger=dict(interval=20))
