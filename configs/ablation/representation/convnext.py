# ConvNeXt, trained with labels, IN-21k. Row "ConvNeXt (H)" of the paper.
# Weights: timm/convnext_xlarge.fb_in22k, Apache-2.0 by timm's model card (fetched on first use).
# Deviates: the paper's ConvNeXt-H was never published; this is the largest public ConvNeXt of
# IN-21k labels alone, XL (ConvNeXt-V2's H learned by masking first).
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True, type="TimmBackbone", model="convnext_xlarge.fb_in22k", weights="pretrained"
)
model = dict(captioner=None, backbone=backbone)
