# CLIP (H): the image tower of LAION's ViT-H/14. Row "CLIP (H)" of the paper.
# Weights: laion/CLIP-ViT-H-14-laion2B-s32B-b79K, MIT, an open_clip tag (downloaded on first use).
# Differences: trained at 224 pixels; position embeddings are interpolated. The CLIP that all rows
# share still embeds the class names.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True, type="OpenCLIPBackbone", model="ViT-H-14", weights="laion2b_s32b_b79k"
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
