# MAFT+, trained with COCO panoptic labels and tested on COCO. The authors publish a training config
# only for semantic segmentation (train_semantic_large.yaml), whose schedule this is.
_base_ = [
    "../_base_/models/maftplus.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/coco_369k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    # The auxiliary losses alone train CLIP.
    detach_features=True,
    auxiliary_losses=[
        dict(type="MaskAwareLoss", loss_weight=1.0),
        dict(
            type="RepresentationCompensationLoss",
            loss_weight=0.1,
            # The CLIP that the training starts from.
            teacher=dict(
                type="OpenCLIPBackbone",
                model="convnext_large_d_320",
                weights="laion2b_s29b_b131k_ft_soup",
            ),
        ),
    ],
)

max_iters = 55000
optim_wrapper = dict(
    optimizer=dict(weight_decay=2e-5),
    # CLIP's trunk: a tenth of the learning rate (BACKBONE_MULTIPLIER).
    paramwise_cfg=dict(custom_keys={"clip.model.visual.trunk": dict(lr_mult=0.1)}),
)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000))
auto_scale_lr = dict(base_batch_size=8)

# Short edge 800, long edge at most 1333.
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(1333, 800)),
    _base_.test_pipeline[-1],
]
train_dataloader = dict(batch_size=1)  # per GPU; 8 in all on 8 GPUs
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [dict(type="PanopticQuality"), dict(type="SemanticIoU")]
test_evaluator = val_evaluator
