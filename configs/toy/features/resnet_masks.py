# Counterpart of configs/baseline/baseline_r50_maskclip.py in the toy world: class-agnostic masks of
# a plain ResNet, which CLIP alone names. The ResNet has the diffusion model's size (4.9 M
# parameters). It is trained from scratch together with the head, without labels and captions.
_base_ = ["../../_base_/toy_world.py"]

model = dict(
    tile_size=None,
    captioner=None,
    backbone=dict(_delete_=True, type="TimmBackbone", model="resnet10t", frozen=False),
    neck=None,
    head=dict(objectness=True, embed_masks=False),
    classifiers=[dict(type="MaskCLIPClassifier", template="a photo of a {}.")],
)
