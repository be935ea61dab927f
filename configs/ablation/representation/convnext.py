# ConvNeXt, trained with labels, IN-21k. Row "ConvNeXt (H)" of the paper.
# Weights: timm/convnext_xlarge.fb_in22k, Apache-2.0 according to timm's model card (downloaded on
# first use).
# Differences: the paper's ConvNeXt-H was never published. This is the largest public ConvNeXt
# trained only with labels of IN-21k, an XL (ConvNeXt-V2's H was pre-trained with masking).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True, type="TimmBackbone", model="convnext_xlarge.fb_in22k", weights="pretrained"
)
model = dict(captioner=None, backbone=backbone)
