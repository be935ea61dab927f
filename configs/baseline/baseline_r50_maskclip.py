# Class-agnostic masks of a plain image backbone, which CLIP alone names by mask pooling. Trained
# with COCO's masks, without labels and captions.
_base_ = ["../_base_/baseline.py"]

model = dict(
    head=dict(embed_masks=False),
    classifiers=[dict(type="MaskCLIPClassifier", template="a photo of a {}.")],
)
