# Overfit two real images in minutes on a CPU, to test everything from reading the files to panoptic
# quality. Label supervision; the diffusion model and CLIP are tiny and frozen, with random weights.
# Layout: data/real_coco/{val2017,annotations/panoptic_val2017,annotations/panoptic_val2017.json}.
_base_ = ["./odise_tiny.py"]

width = 128

model = dict(
    tile_size=192,
    neck=dict(out_channels=width, bottleneck_channels=64),
    head=dict(
        feat_channels=width,
        out_channels=width,
        num_queries=60,
        pixel_decoder=dict(
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=width),
                    ffn_cfg=dict(embed_dims=width, feedforward_channels=512),
                ),
            ),
            positional_encoding=dict(num_feats=width // 2),
        ),
        positional_encoding=dict(num_feats=width // 2),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=width),
                cross_attn_cfg=dict(embed_dims=width),
                ffn_cfg=dict(embed_dims=width, feedforward_channels=512),
            ),
        ),
        train_cfg=dict(num_points=4096),
    ),
    # No CLIP classifier, because CLIP is random.
    classifiers=[
        dict(type="OpenVocabClassifier", embed_dim=width, null_class=True, template="{}"),
    ],
    test_cfg=dict(overlap_threshold=0.8),
)

# Resize the short edge to 192 pixels. No jitter, as the aim is to overfit these images.
resize = dict(type="ResizeKeepRatio", scale=(480, 192))
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadPanopticMap"),
    resize,
    dict(type="PanopticMapToMasks"),
    dict(type="DrawWords", num_words=8),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=(
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
            "words",
            "caption",
        ),
    ),
]
test_pipeline = [
    dict(type="LoadImage"),
    resize,
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.test_pipeline[-1].meta_keys),
]

real_coco = dict(
    data_root="data/real_coco/",
    ann_file="annotations/panoptic_val2017.json",
    data_prefix=dict(img="val2017/", seg="annotations/panoptic_val2017/"),
)
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=2, pin_memory=False, dataset=dict(pipeline=train_pipeline, **real_coco), **loader
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **real_coco), **loader)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="InstanceAP"),  # computed from the panoptic annotations, as there are no others
    dict(type="SemanticIoU"),
]
test_evaluator = val_evaluator

max_iters = 240
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="TrainedParametersConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.0),
    clip_grad=dict(max_norm=1.0, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(type="MultiStepLR", by_epoch=False, milestones=[200], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(checkpoint=dict(interval=60), logger=dict(interval=10))
