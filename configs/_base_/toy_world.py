# Common settings of ODISE in the toy world (projects/toy_world), without the classifiers. The
# frozen parts are a small latent diffusion model and a small CLIP. They were pre-trained in the toy
# world, and their weights are in the repository.
_base_ = [
    "models/odise.py",
    "datasets/coco.py",
    "schedules/coco_92k.py",
    "default_runtime.py",
]

toy_world = "{{ fileDirname }}/../../projects/toy_world/"
clip_folder = toy_world + "weights/clip"
diffusion_folder = toy_world + "weights/diffusion"
base_names = toy_world + "vocabularies/base.txt"
all_names = toy_world + "vocabularies/all.txt"
subsets = dict(
    base=toy_world + "vocabularies/base_things.txt", novel=toy_world + "vocabularies/novel.txt"
)
data_root = "data/toy_world/"

width = 64
model = dict(
    vocabulary=base_names,
    tile_size=128,
    max_tiles_per_batch=32,
    clip=dict(model=clip_folder, weights=clip_folder),
    backbone=dict(
        arch=diffusion_folder,
        weights=diffusion_folder,
        # As in the paper: the input of each level's last residual block, at strides of 4 or more.
        taps=dict(vae_encoder=(2,), unet=(1, 3, 5, 7), vae_decoder=(1,)),
    ),
    neck=dict(out_channels=width, bottleneck_channels=32),
    head=dict(
        feat_channels=width,
        out_channels=width,
        num_queries=20,
        pixel_decoder=dict(
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=width),
                    ffn_cfg=dict(embed_dims=width, feedforward_channels=256),
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
                ffn_cfg=dict(embed_dims=width, feedforward_channels=256),
            ),
        ),
        train_cfg=dict(num_points=1024),
    ),
    ensemble=dict(type="GeometricEnsemble"),
)

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadPanopticMap"),
    dict(type="mmdet.RandomFlip", prob=0.5),
    dict(type="PanopticMapToMasks"),
    dict(type="DrawWords", num_words=8),
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.train_pipeline[-1].meta_keys),
]
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(320, 128)),
    dict(type="mmdet.PackDetInputs", meta_keys=_base_.test_pipeline[-1].meta_keys),
]
loader = dict(num_workers=0, persistent_workers=False)  # 128 x 128 pixels are decoded fast enough
train_dataloader = dict(
    batch_size=8,
    pin_memory=False,
    dataset=dict(vocabulary=base_names, data_root=data_root, pipeline=train_pipeline),
    **loader,
)
val_dataloader = dict(
    dataset=dict(
        vocabulary=all_names, subsets=subsets, data_root=data_root, pipeline=test_pipeline
    ),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="InstanceAP", ann_file=data_root + "annotations/instances_val2017.json"),
    dict(type="SemanticIoU"),
]
test_evaluator = val_evaluator

max_iters = 2000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="TrainedParametersConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(in_proj_bias=dict(decay_mult=0.0)),
    ),
    clip_grad=dict(max_norm=1.0, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min_ratio=0.01),
]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=200), logger=dict(interval=20))
