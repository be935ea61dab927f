# OVRCOAT, trained with COCO panoptic labels and tested on COCO.
_base_ = [
    "../_base_/models/ovrcoat.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/coco_369k.py",
    "../_base_/default_runtime.py",
]

model = dict(auxiliary_losses=[dict(type="CLIPCrossEntropyLoss", loss_weight=0.1)])

optim_wrapper = dict(
    # Published in float32 (AMP off), otherwise FC-CLIP's.
    _delete_=True,
    type="OptimWrapper",
    constructor="TrainedParametersConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "query_feat": dict(decay_mult=0.0),
            "query_embed": dict(decay_mult=0.0),
            "level_embed": dict(decay_mult=0.0),
            "null_embedding": dict(decay_mult=0.0),
            # A tenth of the learning rate for CLIP's trunk (BACKBONE_MULTIPLIER).
            "clip.model.visual.trunk": dict(lr_mult=0.1),
        },
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)

# Short edge 800, long edge at most 1333.
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(1333, 800)),
    _base_.test_pipeline[-1],
]
# Published without flips (RANDOM_FLIP "none").
train_pipeline = [step for step in _base_.train_pipeline if step["type"] != "mmdet.RandomFlip"]
train_dataloader = dict(
    batch_size=3,  # per GPU; 9 in all on 3 GPUs
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The schedule is FC-CLIP's. The names of the authors' checkpoints (0003999 to 0019999) suggest that
# they stopped after about 20,000 iterations, before the first drop of the learning rate.
train_cfg = dict(val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000))
auto_scale_lr = dict(base_batch_size=9)
