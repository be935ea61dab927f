# The setup of the ablations (512 x 512, captions, COCO) with a ResNet-50 trained on ImageNet-1k.
# Weights: torchvision's ResNet50_Weights.IMAGENET1K_V2 (98 MB, downloaded on first use).
_base_ = ["../../../configs/_base_/ablation.py"]
custom_imports = dict(imports=["projects.example_backbone.torchvision_backbone"])
model = dict(
    tile_size=None,  # no tiles: a convolutional network accepts any size
    backbone=dict(
        _delete_=True,
        type="TorchvisionBackbone",
        model="resnet50",
        layers=["layer1", "layer2", "layer3", "layer4"],
        weights="IMAGENET1K_V2",
    ),
    captioner=None,  # only diffusion models use one
)
