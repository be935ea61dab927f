# The row of configs/ablation/representation/clip_convnext_l.py in the toy world.
_base_ = ["../../../_base_/ablation_toy.py"]

vision = dict(timm_model_name="test_convnext", timm_pool="avg", image_size=64)
model = dict(
    captioner=None,
    backbone=dict(
        _delete_=True, type="OpenCLIPBackbone", model=dict(embed_dim=64, vision_cfg=vision)
    ),
)
