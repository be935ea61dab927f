# The ResNet and the head of resnet_masks.py, trained with masks and captions as odise_toy_caption.
_base_ = ["../../_base_/toy_world_caption.py"]

model = dict(
    tile_size=None,
    captioner=None,
    backbone=dict(_delete_=True, type="TimmBackbone", model="resnet10t", frozen=False),
    neck=None,
)
