# A small version with random weights, on two images. It runs on a CPU without any downloads.
_base_ = ["../../../configs/toy/overfit_real_coco.py"]
custom_imports = dict(imports=["projects.example_backbone.torchvision_backbone"])
model = dict(
    tile_size=None,
    backbone=dict(
        _delete_=True,
        type="TorchvisionBackbone",
        model="resnet18",
        layers=["layer1", "layer2", "layer3", "layer4"],
    ),
    captioner=None,
)
