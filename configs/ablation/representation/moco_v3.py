# MoCo-v3, self-supervised, IN-1k. Row "MoCo-v3 (H)" of the paper.
# Weights, CC-BY-NC-4.0: https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar,
# saved as below. It holds two encoders; the base one is read, which its authors evaluate. timm
# knows no MoCo-v3: the architecture is DINO's ViT-B/16, whose tag gives IN-1k's mean and deviation.
# Deviates: the paper's ViT-H was never published; this is the largest public one, B.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="vit_base_patch16_224.dino",
    weights="checkpoints/vit-b-300ep.pth.tar",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
