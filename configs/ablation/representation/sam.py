# SAM (H): the blocks of its image encoder, without the neck; trained with masks, SA-1B. Not in the
# paper.
# Weights: timm/samvit_huge_patch16.sa1b, Apache-2.0 (downloaded on first use).
# Trained at 1024 pixels; position embeddings are interpolated to 512.
_base_ = ["../../_base_/ablation.py"]

backbone = dict(
    _delete_=True,
    type="TimmBackbone",
    model="samvit_huge_patch16.sa1b",
    weights="pretrained",
)
model = dict(captioner=None, backbone=backbone, neck=dict(levels=(4, 8, 16, 32)))
