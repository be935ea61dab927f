# CLIP (L): the image tower of the CLIP that the model has anyway. Row "CLIP (L)" of the paper.
# Weights: OpenAI's ViT-L/14 at 336 pixels, MIT, open_clip's tag "openai"; none of its own.
# Deviates: the paper does not say whether its tower was the one of 224 or of 336 pixels.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(_delete_=True, type="OpenCLIPBackbone")
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
