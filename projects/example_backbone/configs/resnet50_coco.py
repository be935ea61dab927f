# The ablations' set-up (512 x 512, captions, COCO) on ResNet-50, trained on ImageNet-1k's labels.
# Weights: torchvision's ResNet50_Weights.IMAGENET1K_V2 (98 MB, fetched on first use).
_base_ = ["../../../configs/_base_/ablation.py"]
custom_imports = dict(imports=["projects.example_backbone.torchvision_backbone"])
model = dict(
    tile_size=None,  # whole images: a convolutional network takes any size
    backbone=dict(
        _delete_=True,
        type="TorchvisionBackbone",
        model="resnet50",
        layers=["layer1", "layer2", "layer3", "layer4"],
        weights="IMAGENET1K_V2",
    ),
    captioner=None,  # it conditions diffusion models only
)
