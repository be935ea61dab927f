# MoCo-v3, self-supervised, IN-1k. Row "MoCo-v3 (H)" of the paper.
# Weights, CC-BY-NC-4.0: https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar,
# saved under the path below. The file has two encoders; the base encoder is used, which the authors
# evaluate. timm has no MoCo-v3; the architecture is that of DINO's ViT-B/16, whose tag has the mean
# and standard deviation of IN-1k.
# Differences: the paper's ViT-H was never published. This is the largest public model, a ViT-B.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_base_patch16_224.dino",
    weights="checkpoints/vit-b-300ep.pth.tar",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
