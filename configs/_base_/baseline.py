# ODISE's model without the diffusion model: its head reads the maps of a ResNet-50, which is
# trained together with the head. Backbone, pre-training and learning rate as in Mask2Former (arXiv
# 2112.01527). Weights: timm/resnet50.tv_in1k, ImageNet-1k, BSD-3-Clause (downloaded on first use).
_base_ = [
    "models/odise.py",
    "datasets/coco.py",
    "schedules/coco_92k.py",
    "default_runtime.py",
]

model = dict(
    vocabulary="coco",
    tile_size=None,
    captioner=None,
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model="resnet50.tv_in1k",
        weights="pretrained",
        frozen=False,
        norm_eval=True,
    ),
    neck=None,
    # Every query is "object" or "no object".
    head=dict(objectness=True),
    ensemble=dict(type="GeometricEnsemble", alpha=0.35, beta=0.65),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
